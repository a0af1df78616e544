// Slurm's two shorthands: lists of hosts, and counts a host.

/** More than any machine has: `n[0-999999999]` is a slip of the hand that would fill the memory. */
const mostHosts = 100_000;

/**
 * "node[001-003,007],gpu[1-2]-ib[0-1]" as the names it stands for, in Slurm's order: the last bracket runs fastest.
 * undefined where it is no such list.
 */
export function expandNodeList(list: string): string[] | undefined {
  const hosts: string[] = [];
  // Commas within brackets separate ranges, not hosts.
  const entries = list.trim().match(/(?:[^,[\]]|\[[^[\]]*\])+/g) ?? [];
  if (entries.join(",") !== list.trim()) return undefined;
  for (const entry of entries) {
    let names = [""];
    for (const [part, ranges] of entry.matchAll(/\[([^\]]*)\]|[^[]+/g)) {
      const choices = ranges === undefined ? [part] : expandRanges(ranges);
      if (choices === undefined || names.length * choices.length > mostHosts) return undefined;
      names = names.flatMap((name) => choices.map((choice) => name + choice));
    }
    hosts.push(...names);
    if (hosts.length > mostHosts) return undefined;
  }
  return hosts.length > 0 && hosts.every((host) => /^[\w.-]+$/.test(host)) ? hosts : undefined;
}

/** "001-003,007": the width of the first number is kept. */
function expandRanges(ranges: string): string[] | undefined {
  const numbers: string[] = [];
  for (const range of ranges.split(",")) {
    const [, first = "", last = first] = /^(\d{1,9})(?:-(\d{1,9}))?$/.exec(range) ?? [];
    const count = Number(last) - Number(first) + 1;
    if (first === "" || count < 1 || count > mostHosts) return undefined;
    for (let i = 0; i < count; i++) numbers.push(String(Number(first) + i).padStart(first.length, "0"));
  }
  return numbers;
}

/** "4(x2),3" as [4, 4, 3]; undefined where it is no such text. */
export function slurmCounts(text: string): number[] | undefined {
  const counts: number[] = [];
  for (const entry of text.split(",")) {
    const [, count, times = "1"] = /^(\d{1,6})(?:\(x(\d{1,6})\))?$/.exec(entry) ?? [];
    if (count === undefined || counts.length + Number(times) > mostHosts) return undefined;
    for (let i = 0; i < Number(times); i++) counts.push(Number(count));
  }
  return counts;
}
