// Pictures as tiles, each opened by a click, and all of them as one sheet.

import { download, h, loadImage, nameOf, stepsText } from "./dom.js";

/** Fill a list with pictures; captions are below them and cover nothing. */
export function showTiles(list, pictures, open, caption = nameOf) {
  const gaps = (columns) => Math.ceil(pictures.length / columns) * columns - pictures.length;
  const columns = pictures.length < 5 ? Math.max(2, pictures.length) : [4, 5, 3].reduce((best, other) => (gaps(other) < gaps(best) ? other : best));
  list.style.setProperty("--columns", columns);
  list.replaceChildren(
    ...pictures.map((picture, i) =>
      h(
        "li",
        {},
        h(
          "button",
          { type: "button", class: "tile", onclick: () => open(i), "aria-label": `Open ${nameOf(picture)}` },
          h("img", { src: picture.png, alt: "", draggable: "false" }),
        ),
        h("p", { class: "caption" }, caption(picture)),
      ),
    ),
  );
}

/** One PNG of all pictures with captions, and the settings that drew them in its last lines. */
export async function downloadSheet(pictures, lines, name) {
  const images = await Promise.all(pictures.map((picture) => loadImage(picture.png)));
  const columns = Math.min(5, images.length);
  const tile = images[0].width * Math.max(1, Math.round(192 / images[0].width));
  const [gap, caption, line] = [16, 28, 24];
  const rows = Math.ceil(images.length / columns);
  const canvas = h("canvas", {
    width: Math.max(640, gap + columns * (tile + gap)),
    height: gap + rows * (tile + caption + gap) + lines.length * line + gap,
  });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = "#1a1c20";
  pen.font = "16px system-ui, sans-serif";
  images.forEach((image, i) => {
    const [x, y] = [gap + (i % columns) * (tile + gap), gap + Math.floor(i / columns) * (tile + caption + gap)];
    pen.drawImage(image, x, y, tile, tile);
    pen.fillText(nameOf(pictures[i]), x, y + tile + 20);
  });
  lines.forEach((text, i) => pen.fillText(text, gap, gap + rows * (tile + caption + gap) + (i + 0.7) * line));
  download(canvas.toDataURL("image/png"), name);
}

/** "20 steps, guidance 2.5, sampler dpmsolver++" */
export function settingsLine(settings) {
  const parts = [stepsText(settings.num_inference_steps)];
  if (settings.guidance_scale != null) parts.push(`guidance ${settings.guidance_scale}`);
  if (settings.solver) parts.push(`sampler ${settings.solver}`);
  if (settings.jump_n_sample) parts.push(`ancestral sampler, resampling ${settings.jump_n_sample}`);
  return parts.join(", ");
}
