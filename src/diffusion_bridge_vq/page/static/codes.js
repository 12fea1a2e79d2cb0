// The codes of a picture: their numbers over it, a palette, and what changes when one is swapped.

import { h, loadImage, model } from "./dom.js";
import { roving } from "./fields.js";
import { run } from "./queue.js";

const NOTICED = 12; // levels of 255 by which a pixel must differ to be marked

export function codesChapter({ picture, image, layer, panel }) {
  const side = model.map_size;
  const { palette } = model;
  let before; // the picture of the original codes
  let original; // codes, by row
  let codes;
  let chosen = 0;
  let gone = false;

  const where = h("p", { class: "now", "aria-live": "polite" });
  const error = h("p", { class: "error box", role: "alert", hidden: true });
  const difference = h("p", { role: "status" });
  const marked = h("canvas", { width: model.image_size, height: model.image_size, "aria-hidden": "true" });
  const after = h("img", { alt: "After the swaps" });
  const plain = h("img", { alt: "Before the swaps" });
  const pair = h(
    "div",
    { class: "pair", hidden: true },
    h("figure", {}, plain, h("figcaption", {}, "before")),
    h("figure", {}, h("div", { class: "marked" }, after, marked), h("figcaption", {}, "after; outlined: what changed")),
  );
  const undo = h("button", { type: "button", class: "quiet", hidden: true, onclick: () => swap(original.map((row) => [...row])) }, "Undo all swaps");
  const numbers = h("input", { type: "checkbox", checked: true, onchange: () => layer.classList.toggle("no-numbers", !numbers.checked) });

  const tiles = Array.from({ length: model.num_codes }, (_, code) => {
    const tile = h("button", { type: "button", class: "code", "aria-label": `code ${code}`, title: `code ${code}`, onclick: () => choose(code) }, h("span", {}, String(code)));
    const part = (i, of) => (of > 1 ? (100 * i) / (of - 1) : 0);
    tile.style.backgroundPosition = `${part(code % palette.columns, palette.columns)}% ${part(Math.floor(code / palette.columns), palette.rows)}%`;
    return tile;
  });
  const book = h("div", { class: "palette", role: "group", "aria-label": "Codebook" }, tiles);
  book.style.setProperty("--sheet", `url(${palette.png})`);
  book.style.setProperty("--columns", palette.columns);
  book.style.setProperty("--rows", palette.rows);

  const at = (i) => [Math.floor(i / side), i % side];
  function label() {
    const [y, x] = at(chosen);
    const here = codes[y][x];
    where.textContent = `Row ${y + 1}, column ${x + 1} has code ${here}. Choose another code below to swap it.`;
    [...layer.children].forEach((cell, i) => {
      const [row, column] = at(i);
      const code = codes[row][column];
      cell.firstChild.textContent = code;
      cell.setAttribute("aria-label", `row ${row + 1}, column ${column + 1}: code ${code}`);
      cell.setAttribute("aria-pressed", String(i === chosen));
      cell.classList.toggle("same", code === here);
      cell.classList.toggle("swapped", code !== original[row][column]);
    });
    tiles.forEach((tile, code) => tile.setAttribute("aria-pressed", String(code === here)));
    const tile = tiles[here]; // only the palette is scrolled, not the page
    book.scrollTop += tile.getBoundingClientRect().top - book.getBoundingClientRect().top - book.clientHeight / 2;
  }
  function choose(code) {
    const [y, x] = at(chosen);
    const other = codes.map((row) => [...row]);
    other[y][x] = code;
    swap(other);
  }
  async function swap(other) {
    error.hidden = true;
    try {
      const { png } = await run("decode", [other]);
      if (gone) return;
      codes = other;
      image.src = after.src = png;
      label();
      await mark(png);
    } catch (failure) {
      error.textContent = failure.message;
      error.hidden = false;
    }
  }
  async function mark(png) {
    const pixels = await Promise.all([before, png].map(pixelsOf));
    const size = model.image_size;
    const changed = (x, y) =>
      x >= 0 && y >= 0 && x < size && y < size && [0, 1, 2].some((c) => Math.abs(pixels[0][4 * (y * size + x) + c] - pixels[1][4 * (y * size + x) + c]) > NOTICED);
    const scale = Math.max(1, Math.round(256 / size));
    marked.width = marked.height = size * scale;
    const pen = marked.getContext("2d");
    pen.fillStyle = "#ff7a1a";
    let count = 0;
    for (let y = 0; y < size; y++)
      for (let x = 0; x < size; x++) {
        if (!changed(x, y)) continue;
        count++;
        for (const [dx, dy, ...box] of [[-1, 0, 0, 0, 2, scale], [1, 0, scale - 2, 0, 2, scale], [0, -1, 0, 0, scale, 2], [0, 1, 0, scale - 2, scale, 2]])
          if (!changed(x + dx, y + dy)) pen.fillRect(x * scale + box[0], y * scale + box[1], box[2], box[3]);
      }
    const swaps = codes.flat().filter((code, i) => code !== original.flat()[i]).length;
    pair.hidden = undo.hidden = swaps === 0;
    difference.textContent = swaps ? `${swaps === 1 ? "One swap" : `${swaps} swaps`} changed ${count} of ${size * size} pixels visibly.` : "";
  }
  async function pixelsOf(url) {
    const loaded = await loadImage(url);
    const canvas = h("canvas", { width: loaded.width, height: loaded.height });
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(loaded, 0, 0);
    return pen.getImageData(0, 0, loaded.width, loaded.height).data;
  }

  async function start() {
    if (!picture.codes) {
      const encoded = await run("encode", [picture.png]).catch((failure) => ({ failure }));
      if (gone) return;
      if (encoded.failure) {
        error.textContent = encoded.failure.message;
        error.hidden = false;
        return;
      }
      Object.assign(picture, { codes: encoded.codes, decoded: encoded.decoded });
    }
    image.src = plain.src = before = picture.decoded || picture.png;
    original = picture.codes;
    codes = original.map((row) => [...row]);
    layer.setAttribute("role", "group");
    layer.setAttribute("aria-label", "Codes of the picture");
    layer.replaceChildren(
      ...codes.flat().map((_, i) => h("button", { type: "button", class: "cell", onclick: () => ((chosen = i), label()), onfocus: () => ((chosen = i), label()) }, h("span"))),
    );
    chosen = Math.floor(side / 2) * side + Math.floor(side / 2);
    roving(layer, side, chosen);
    roving(book, columnsOf(book), codes[0][0]);
    label();
  }
  const columnsOf = (element) => Math.max(1, getComputedStyle(element).gridTemplateColumns.split(" ").length);

  panel.replaceChildren(
    h(
      "p",
      {},
      "The decoder paints the picture from these codes. Click one (or use the arrow keys): the same code is marked wherever it is.",
    ),
    where,
    book,
    h("label", { class: "check" }, numbers, " Show the numbers"),
    error,
    difference,
    pair,
    h("p", {}, undo),
  );
  start();
  return () => {
    gone = true;
    layer.classList.remove("no-numbers");
  };
}
