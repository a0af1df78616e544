// What a report says of the machine that its figures come from.
import os from "node:os";
import { type Device, info } from "../index.ts";
import { formatBytes } from "./quantity.ts";

export interface Fact {
  readonly name: string;
  readonly value: string;
}

export function machineFacts(device: Device, torchVersion: string | undefined): Fact[] {
  const { version, cpu } = info();
  return [
    { name: "device", value: `${device.name}: ${device.description}` },
    ...(device.kind === "cpu"
      ? []
      : [{ name: "processor", value: `${cpu.model}, ${cpu.instructionSet}, ${cpu.threads} threads` }]),
    { name: "memory", value: formatBytes(os.totalmem()) },
    { name: "system", value: `${os.type()} ${os.release()} ${os.arch()}` },
    { name: "longseq", value: version },
    { name: "Node.js", value: process.version },
    ...(torchVersion === undefined ? [] : [{ name: "PyTorch", value: torchVersion }]),
  ];
}
