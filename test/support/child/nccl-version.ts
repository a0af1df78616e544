// Which NCCL is opened: its version, or the error's code and message.
import { type NcclLibrary, ncclLibrary } from "longseq";

export type Opened = NcclLibrary | { code: string; message: string };

try {
  console.log(JSON.stringify(ncclLibrary()));
} catch (error) {
  const { code, message } = error as Error & { code: string };
  console.log(JSON.stringify({ code, message }));
}
