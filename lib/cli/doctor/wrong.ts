// Variables of ours that say what cannot be, each with what the library says of it.
import { existsSync } from "node:fs";
import { rankFromEnvironment } from "../../launch/rank.ts";

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Null where it goes well. */
export function messageFrom(attempt: () => void): string | null {
  try {
    attempt();
    return null;
  } catch (error) {
    return messageOf(error);
  }
}

/** What the binary said to `info()`, and to opening the device that LONGSEQ_DEVICE names; null where nothing. */
interface Said {
  readonly binary: string | null;
  readonly device: string | null;
}

/** By the variable's name. */
export function wrongVariables(environment: NodeJS.ProcessEnv, said: Said): ReadonlyMap<string, string> {
  const rank = messageFrom(() => rankFromEnvironment(environment));
  const wrong = new Map<string, string>();
  const note = (message: string | null, otherwise?: string) => {
    const name = message === null ? undefined : (namedIn(message, environment) ?? otherwise);
    if (message !== null && name !== undefined) wrong.set(name, message);
  };
  note(said.device, "LONGSEQ_DEVICE");
  note(said.binary);
  // Where another launcher's variables are wrong, none of ours is.
  note(rank);
  return wrong;
}

function namedIn(message: string, environment: NodeJS.ProcessEnv): string | undefined {
  return message.match(/LONGSEQ_\w+/g)?.find((name) => environment[name]);
}

/** Why a library is not where its variable says; undefined where none says anything. */
export function misled(
  environment: NodeJS.ProcessEnv,
  variable: string,
  library: string,
): string | undefined {
  const named = environment[variable];
  // A bare name is the system's search's.
  if (!named?.includes("/")) return undefined;
  return existsSync(named)
    ? `${variable} names ${named}, where there is no ${library}`
    : `${variable} names ${named}, which does not exist`;
}
