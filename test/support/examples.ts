// The examples of the documentation: found in the comments, made into modules, checked by the compiler.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";
import { root } from "./devices.ts";

export interface Example {
  /** What it is an example of: "attention", "Tensor.from". */
  readonly name: string;
  readonly code: string;
}

export interface Documentation {
  /** Functions, variables, classes and their public methods, exported or not, and the tags in each one's comment. */
  readonly declared: ReadonlyMap<string, readonly string[]>;
  readonly examples: readonly Example[];
  /** How often `@example` is written: what is not found would not be run. */
  readonly written: number;
}

/** Of all files of lib/. */
export function documentation(): Documentation {
  const declared = new Map<string, readonly string[]>();
  const examples: Example[] = [];
  let written = 0;
  const visit = (node: ts.Node, file: ts.SourceFile, outer: string) => {
    const own = nameOf(node, file);
    const name = own === undefined ? outer : `${outer === "" ? "" : `${outer}.`}${own}`;
    const tags = ts.getJSDocCommentsAndTags(node).flatMap((doc) => (ts.isJSDoc(doc) ? (doc.tags ?? []) : []));
    if (own !== undefined && !ts.isGetAccessorDeclaration(node)) {
      declared.set(
        name,
        tags.map((tag) => tag.tagName.text),
      );
    }
    for (const tag of tags.filter(({ tagName }) => tagName.text === "example")) {
      examples.push({ name, code: codeOf(tag.getText(file)) });
    }
    if (ts.isSourceFile(node) || ts.isClassDeclaration(node)) {
      ts.forEachChild(node, (child) => visit(child, file, name));
    }
  };
  const sources = readdirSync(join(root, "lib"), { recursive: true, encoding: "utf8" });
  for (const source of sources.filter((name) => name.endsWith(".ts")).sort()) {
    const text = readFileSync(join(root, "lib", source), "utf8");
    written += text.split("@example").length - 1;
    const file = ts.createSourceFile(source, text, ts.ScriptTarget.ES2022, true);
    visit(file, file, "");
  }
  return { declared, examples, written };
}

/** Functions, variables, classes and their public methods and getters; what has a computed name needs no documentation. */
function nameOf(node: ts.Node, file: ts.SourceFile): string | undefined {
  if (ts.isFunctionDeclaration(node) || ts.isClassDeclaration(node)) return node.name?.text;
  if (ts.isVariableStatement(node)) return node.declarationList.declarations[0]?.name.getText(file);
  if (!ts.isMethodDeclaration(node) && !ts.isGetAccessorDeclaration(node)) return undefined;
  return ts.isIdentifier(node.name) ? node.name.getText(file) : undefined;
}

/** The lines after the tag, without the comment's stars. */
function codeOf(tag: string): string {
  const lines = tag.split("\n").slice(1);
  return lines.map((line) => line.replace(/^\s*\* ?/, "")).join("\n");
}

/** The blocks of README.md that are TypeScript. */
export function readmeExamples(): Example[] {
  const blocks = readFileSync(join(root, "README.md"), "utf8").matchAll(/^```ts\n(.*?)^```/gms);
  return Array.from(blocks, ([, code = ""], at) => ({ name: `README.md, block ${at + 1}`, code }));
}

/**
 * `expression; // value` at an example's top level says what comes out. Where the value is JSON, or the digits of a
 * mask, that is made a check.
 */
export function withChecks(code: string): string {
  const file = ts.createSourceFile("example.ts", code, ts.ScriptTarget.ES2022, true);
  const edits = file.statements.filter(ts.isExpressionStatement).flatMap((statement) => {
    const [comment] = ts.getTrailingCommentRanges(code, statement.end) ?? [];
    const expected = comment && expectation(code.slice(comment.pos + 2, comment.end).trim());
    if (expected === undefined) return [];
    const { expression } = statement;
    const text = expression.getText(file);
    return [
      { start: expression.getStart(file), end: expression.end, text: `expectEqual(${text}, ${expected})` },
    ];
  });
  return edits.reduceRight(
    (made, { start, end, text }) => made.slice(0, start) + text + made.slice(end),
    code,
  );
}

function expectation(comment: string): string | undefined {
  if (/^[01](,? [01])+$/.test(comment)) return `[${comment.match(/[01]/g)?.join(", ")}]`;
  try {
    return JSON.stringify(JSON.parse(comment));
  } catch {
    return undefined;
  }
}

/** One line, so that an example's line n is its module's line n + 1. */
function prelude(code: string, exported: readonly string[]): string {
  const helper =
    "const expectEqual = (got: unknown, expected: unknown): void => " +
    "assert.deepEqual(ArrayBuffer.isView(got) ? Array.from(got as Uint8Array) : got, expected);";
  const imports = /from "longseq"/.test(code) ? "" : `import { ${exported.join(", ")} } from "longseq"; `;
  return `import assert from "node:assert/strict"; ${imports}${helper}\n`;
}

export interface Module {
  readonly name: string;
  /** The JavaScript. */
  readonly path: string;
  /** What the compiler finds wrong. */
  readonly errors: readonly string[];
}

/**
 * Each example as a module of `folder`, which must lie in the package for `longseq` to be found, compiled as in a
 * project whose compiler is strict.
 */
export function compile(examples: readonly Example[], folder: string, exported: readonly string[]): Module[] {
  mkdirSync(folder, { recursive: true });
  const paths = examples.map(({ code }, at) => {
    const path = join(folder, `example-${at}.ts`);
    writeFileSync(path, prelude(code, exported) + withChecks(code));
    return path;
  });
  const program = ts.createProgram(paths, {
    target: ts.ScriptTarget.ES2022,
    lib: ["lib.es2023.d.ts", "lib.esnext.disposable.d.ts"],
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    moduleDetection: ts.ModuleDetectionKind.Force,
    strict: true,
    skipLibCheck: true,
    types: ["node"],
    typeRoots: [join(root, "node_modules/@types")],
  });
  program.emit();
  return examples.map(({ name }, at) => {
    const path = paths[at] ?? "";
    const file = program.getSourceFile(path);
    const found = [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)];
    const errors = found.map(({ messageText, start = 0 }) => {
      const line = file?.getLineAndCharacterOfPosition(start).line ?? 0;
      return `line ${line} of the example: ${ts.flattenDiagnosticMessageText(messageText, "\n")}`;
    });
    return { name, path: path.replace(/\.ts$/, ".js"), errors };
  });
}
