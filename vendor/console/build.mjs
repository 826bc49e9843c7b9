// Makes vendor.js and vendor.css of the console, with their licences and checksums beside them.
// Run by `make console-bundle`; the results are committed, so that installing needs no build.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [modules, target] = process.argv.slice(2);
if (!target) throw new Error("usage: node build.mjs NODE_MODULES TARGET");

const read = (...parts) => readFileSync(join(...parts), "utf8");
const sha256 = (text) => createHash("sha256").update(text).digest("hex");

// The order in which licences are listed: what is bundled, `@preact/signals-core` with signals.
const PACKAGES = [
  "preact", "htm", "@preact/signals", "@preact/signals-core", "uplot", "dompurify", "marked",
  "@picocss/pico",
];

const banner = "/* Bundled by `make console-bundle`; versions and licences: vendor.json, "
  + "vendor-licences.txt */";
const done = await build({
  entryPoints: [new URL("entry.js", import.meta.url).pathname],
  nodePaths: [modules],
  bundle: true, minify: true, format: "esm", target: "es2022", charset: "utf8",
  legalComments: "none", write: false, metafile: true, banner: { js: banner },
});
const script = done.outputFiles[0].text;
const style = await build({
  stdin: {
    contents: '@import "@picocss/pico/css/pico.min.css";\n@import "uplot/dist/uPlot.min.css";\n',
    loader: "css", resolveDir: modules,
  },
  nodePaths: [modules],
  bundle: true, minify: true, write: false, legalComments: "none", banner: { css: banner },
});
const sheet = style.outputFiles[0].text;

const bundled = new Set(Object.keys(done.metafile.inputs).flatMap((path) => {
  const found = /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path);
  return found ? [found[1]] : [];
}));
for (const name of bundled) {
  if (!PACKAGES.includes(name)) throw new Error(`${name} is bundled and not listed in PACKAGES`);
}

const packages = [];
const licences = [];
for (const name of PACKAGES) {
  const folder = join(modules, name);
  const about = JSON.parse(read(folder, "package.json"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  packages.push({ name, version: about.version, licence: about.license });
  const text = file && existsSync(join(folder, file)) ? read(folder, file).trim() : null;
  // htm's and signals' packages name their licence and author, and ship its text in their
  // repositories only.
  licences.push(`${name} ${about.version} (${about.license})\n\n`
    + (text ?? `Licence text not in the package; ${about.license}, by ${describe(about)}.`));
}

function describe(about) {
  const author = about.author;
  return typeof author === "string" ? author : author?.name ?? "its contributors";
}

writeFileSync(join(target, "vendor.js"), script);
writeFileSync(join(target, "vendor.css"), sheet);
writeFileSync(join(target, "vendor-licences.txt"),
  licences.join(`\n\n${"-".repeat(78)}\n\n`) + "\n");
const made = { packages, sha256: { "vendor.js": sha256(script), "vendor.css": sha256(sheet) } };
writeFileSync(join(target, "vendor.json"), JSON.stringify(made, null, 2) + "\n");
console.log(`vendor.js ${script.length} bytes, vendor.css ${sheet.length} bytes`);
