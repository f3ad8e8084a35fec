// What two pictures and the steps of a run have to tell.

async function pixels(base64, width, height) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  // As the file says: no colour management, no premultiplied alpha.
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const picture = await createImageBitmap(new Blob([bytes], { type: "image/png" }), options);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

// Peak signal to noise ratio in dB over red, green and blue; Infinity for equal pictures.
export async function psnr(one, other) {
  if (one.size !== other.size) throw new Error(`the pictures have ${one.size} and ${other.size} pixels`);
  const [width, height] = one.size.split("x").map(Number);
  const [a, b] = await Promise.all([pixels(one.b64_json, width, height), pixels(other.b64_json, width, height)]);
  let sum = 0;
  for (let i = 0; i < a.length; i++) if (i % 4 !== 3) sum += (a[i] - b[i]) ** 2;
  return sum ? 10 * Math.log10((255 ** 2 * width * height * 3) / sum) : Infinity;
}

const SVG = "http://www.w3.org/2000/svg";
const CELL = 18, TALL = 9, LEFT = 26, BELOW = 14;

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// A column for each step, a cell for each block, the first one at the bottom.
export function skipMap(svg, steps) {
  const blocks = Math.max(...steps.map((step) => step.blocks_run + step.blocks_skipped));
  const run = steps.reduce((sum, step) => sum + step.blocks_run, 0);
  const skipped = steps.reduce((sum, step) => sum + step.blocks_skipped, 0);
  const cached = steps.filter((step) => step.cached).map((step) => step.index);
  const tall = Math.min(TALL, 260 / blocks);
  const height = blocks * tall;
  svg.setAttribute("viewBox", `0 0 ${LEFT + steps.length * CELL} ${height + BELOW}`);
  svg.setAttribute("aria-label", `${steps.length} steps of ${blocks} blocks: ${run} blocks ran, ${skipped} were skipped, `
    + `in steps ${cached.join(", ") || "none"}`);
  svg.replaceChildren(
    shape("text", { x: LEFT - 4, y: height, "text-anchor": "end" }, "1"),
    shape("text", { x: LEFT - 4, y: 8, "text-anchor": "end" }, blocks),
  );
  steps.forEach((step, column) => {
    const x = LEFT + column * CELL;
    for (let block = 0; block < step.blocks_run + step.blocks_skipped; block++) {
      const skip = step.skipped.includes(block);
      const kind = skip ? "skip" : "run";
      const cell = shape("rect", { class: kind, x, y: height - (block + 1) * tall, width: CELL - 1, height: tall * .88 });
      cell.append(shape("title", {}, `step ${step.index}, block ${block + 1}: ${skip ? "skipped" : "run"}`
        + (step.reason ? ` (${step.reason})` : "")));
      svg.append(cell);
    }
    if (column % 5 === 0 || column === steps.length - 1) {
      svg.append(shape("text", { x: x + CELL / 2, y: height + 11, "text-anchor": "middle" }, step.index));
    }
  });
  return { run, skipped, cached: cached.length };
}
