// Reads what a 64-bit little-endian ELF file says about its symbols, so that the package tests need no binutils.
import { readFileSync } from "node:fs";

export interface ElfSymbol {
  readonly name: string;
  readonly binding: "local" | "global" | "weak" | "unique";
  readonly isFunction: boolean;
  readonly isDefined: boolean;
  /** Of an undefined dynamic symbol: the version that it needs, like `GLIBC_2.14`. */
  readonly version: string | undefined;
}

export interface ElfFile {
  /** The dynamic symbols of a shared library, all symbols of an object file. */
  readonly symbols: readonly ElfSymbol[];
  /** The shared libraries that must be loaded first. */
  readonly needed: readonly string[];
}

const SECTION = {
  symbols: 2,
  dynamic: 6,
  dynamicSymbols: 11,
  versionNeeds: 0x6ffffffe,
  versionIndex: 0x6fffffff,
};
const DYNAMIC_NEEDED = 1n;
const BINDINGS: Readonly<Record<number, ElfSymbol["binding"]>> = {
  0: "local",
  1: "global",
  2: "weak",
  10: "unique",
};
const TYPE_FUNCTION = 2;
const TYPE_INDIRECT_FUNCTION = 10;

interface Section {
  readonly type: number;
  readonly content: Buffer;
  readonly link: number;
}

function readSections(file: Buffer): Section[] {
  if (file.readUInt32BE(0) !== 0x7f454c46) throw new Error("not an ELF file");
  const table = Number(file.readBigUInt64LE(0x28));
  const entrySize = file.readUInt16LE(0x3a);
  // An object with more than 65,279 sections, as one section a function makes, has their number in the first entry.
  const count = file.readUInt16LE(0x3c) || Number(file.readBigUInt64LE(table + 0x20));
  return Array.from({ length: count }, (_, index) => {
    const entry = file.subarray(table + index * entrySize);
    const offset = Number(entry.readBigUInt64LE(0x18));
    return {
      type: entry.readUInt32LE(4),
      content: file.subarray(offset, offset + Number(entry.readBigUInt64LE(0x20))),
      link: entry.readUInt32LE(0x28),
    };
  });
}

function text(strings: Section | undefined, offset: number): string {
  if (strings === undefined) throw new Error("a section names a string table that is not there");
  return strings.content.toString("latin1", offset, strings.content.indexOf(0, offset));
}

/** Version index -> name, from the list of the versions that each needed library must have. */
function readVersionNeeds(sections: readonly Section[]): Map<number, string> {
  const versions = new Map<number, string>();
  const needs = sections.find((section) => section.type === SECTION.versionNeeds);
  if (needs === undefined) return versions;
  const { content, link } = needs;
  for (let library = 0, next = -1; next !== 0; library += next) {
    const count = content.readUInt16LE(library + 2);
    let entry = library + content.readUInt32LE(library + 8);
    for (let i = 0; i < count; i++) {
      versions.set(content.readUInt16LE(entry + 6), text(sections[link], content.readUInt32LE(entry + 8)));
      entry += content.readUInt32LE(entry + 12);
    }
    next = content.readUInt32LE(library + 12);
  }
  return versions;
}

function readSymbols(sections: readonly Section[]): ElfSymbol[] {
  const table =
    sections.find((section) => section.type === SECTION.dynamicSymbols) ??
    sections.find((section) => section.type === SECTION.symbols);
  if (table === undefined) return [];
  const versions = readVersionNeeds(sections);
  const versionIndex = sections.find((section) => section.type === SECTION.versionIndex);
  return Array.from({ length: table.content.length / 24 }, (_, index) => {
    const entry = table.content.subarray(index * 24);
    const info = entry.readUInt8(4);
    const isDefined = entry.readUInt16LE(6) !== 0;
    return {
      name: text(sections[table.link], entry.readUInt32LE(0)),
      binding: BINDINGS[info >> 4] ?? "local",
      isFunction: [TYPE_FUNCTION, TYPE_INDIRECT_FUNCTION].includes(info & 15),
      isDefined,
      version: isDefined
        ? undefined
        : versions.get((versionIndex?.content.readUInt16LE(index * 2) ?? 0) & 0x7fff),
    };
  }).filter((symbol) => symbol.name !== "");
}

function readNeeded(sections: readonly Section[]): string[] {
  const dynamic = sections.find((section) => section.type === SECTION.dynamic);
  if (dynamic === undefined) return [];
  return Array.from({ length: dynamic.content.length / 16 }, (_, index) =>
    dynamic.content.subarray(index * 16),
  )
    .filter((entry) => entry.readBigInt64LE(0) === DYNAMIC_NEEDED)
    .map((entry) => text(sections[dynamic.link], Number(entry.readBigUInt64LE(8))));
}

export function readElf(path: string): ElfFile {
  const sections = readSections(readFileSync(path));
  return { symbols: readSymbols(sections), needed: readNeeded(sections) };
}
