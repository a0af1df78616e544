// Waiting for a device's queue without giving way to the event loop.
import { Device, Tensor } from "longseq";

const elsewhere = new Device();

/**
 * Returns once what is queued has run. A queue lags behind JavaScript, whose allocations count at once: without this the
 * peak of what is made in one go says nothing about what is held.
 */
export function waitForQueue(device: Device): void {
  const marker = Tensor.zeros([1], { device });
  const copy = marker.toDevice(elsewhere);
  const before = elsewhere.memory().tensors;
  for (const tensor of [marker, copy]) tensor.dispose();
  const sleeping = new Int32Array(new SharedArrayBuffer(4));
  // The copy's memory is held until the device's queue has come to it.
  while (elsewhere.memory().tensors === before) Atomics.wait(sleeping, 0, 0, 1);
}
