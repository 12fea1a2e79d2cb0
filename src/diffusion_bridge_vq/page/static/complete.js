// Hide part of a picture and let the model draw it anew.

import { guidanceHint, h, model } from "./dom.js";
import { action, allGood, classes as classField, number, roving } from "./fields.js";
import { downloadSheet, settingsLine, showTiles } from "./gallery.js";

const START = "left half given";

export function completeChapter({ picture, layer, panel }, open) {
  const side = model.map_size;
  const hidden = model.masks[START].map((row) => [...row]);

  // the map of patches over the picture
  const cells = hidden.flatMap((row, y) =>
    row.map((_, x) => h("button", { type: "button", class: "patch", "aria-label": `row ${y + 1}, column ${x + 1}`, "data-x": x, "data-y": y })),
  );
  const paint = (cell, value) => {
    hidden[cell.dataset.y][cell.dataset.x] = Number(value);
    cell.setAttribute("aria-pressed", String(Boolean(value)));
  };
  const set = (mask) => cells.forEach((cell) => paint(cell, mask[cell.dataset.y][cell.dataset.x]));
  layer.setAttribute("role", "group");
  layer.setAttribute("aria-label", "Patches of the picture; pressed ones are hidden");
  layer.replaceChildren(...cells);
  roving(layer, side);
  set(hidden);
  let painting; // the value that a drag gives to all patches it meets
  const under = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest(".patch");
  layer.onpointerdown = (event) => {
    const cell = event.target.closest(".patch");
    if (!cell) return;
    painting = cell.getAttribute("aria-pressed") !== "true";
    paint(cell, painting);
    layer.setPointerCapture(event.pointerId);
  };
  layer.onpointermove = (event) => {
    const cell = painting !== undefined && under(event);
    if (cell && layer.contains(cell)) paint(cell, painting);
  };
  layer.onpointerup = layer.onpointercancel = () => (painting = undefined);
  layer.onclick = (event) => {
    const cell = event.target.closest(".patch");
    if (cell && event.detail === 0) paint(cell, cell.getAttribute("aria-pressed") !== "true"); // by keyboard
  };

  // controls
  const presets = [...Object.entries(model.masks), ["nothing hidden", hidden.map((row) => row.map(() => 0))]].map(([name, mask]) =>
    h("button", { type: "button", class: "preset", onclick: () => set(mask) }, name),
  );
  const classes =
    model.classes.length && classField(["none", "no class"], picture.class_name ?? "none", "What the drawn part should show. “no class” leaves it open.");
  const { defaults } = model;
  const count = number("num_completions", defaults.num_completions, { hint: "Each is drawn on its own." });
  const seed = number("seed", defaults.seed, { hint: "The same seed draws the same completions." });
  const steps = number("num_inference_steps", defaults.completion_steps, { hint: "More are slower and fit better." });
  const resampling = number("jump_n_sample", defaults.jump_n_sample, {
    hint: "How often the steps are repeated, so that both parts agree. Multiplies the time.",
  });
  const guidance = defaults.guidance_scale && number("guidance_scale", defaults.guidance_scale, { hint: guidanceHint });
  const keep = h("input", { type: "checkbox", checked: picture.seed == null }); // a photo
  const job = action("Complete");
  const seam = h("p", { class: "hint", hidden: true }, "The given pixels are kept exactly. Where a seam shows, switch that off in “More options”: then the decoder paints all.");
  const results = h("ol", { class: "tiles small" });
  const sheet = h("button", { type: "button", class: "quiet", hidden: true }, "Download all as one sheet");
  let last;

  job.start.addEventListener("click", async () => {
    if (!hidden.flat().some(Boolean)) return job.fail("Nothing is hidden. Click the patches that are to be drawn anew, or choose a mask.");
    if (!allGood([count, seed, steps, resampling, guidance].filter(Boolean))) return;
    const result = await job.run("complete", [
      picture.png,
      hidden,
      classes ? classes.value : "none",
      count.value,
      seed.value,
      steps.value,
      guidance ? guidance.value : null,
      resampling.value,
      keep.checked,
      picture.condition ?? null,
    ]);
    if (!result) return;
    last = result;
    const titled = result.images.map((image) => ({ ...image, title: "Completion", condition: picture.condition }));
    showTiles(results, titled, (i) => open(titled, i, result.settings), ({ seed }) => `seed ${seed}`);
    sheet.hidden = false;
    seam.hidden = !result.settings.keep_given;
  });
  sheet.addEventListener("click", () => {
    const seeds = last.images.map((image) => image.seed);
    const lines = [`${model.name}: completions, seeds ${seeds[0]} to ${seeds.at(-1)}, unselected`, settingsLine(last.settings)];
    downloadSheet(last.images, lines, `${model.name}_completions_seeds${seeds[0]}-${seeds.at(-1)}.png`.replace(/[^\w.-]/g, "-"));
  });

  panel.replaceChildren(
    h("p", {}, "Click or drag over the picture to hide patches (with keys: arrows and space). The model draws what is hidden anew, to fit the rest."),
    h("div", { class: "presets", role: "group", "aria-label": "Masks" }, presets),
    ...(classes ? [classes.element] : []),
    h(
      "details",
      {},
      h("summary", {}, "More options"),
      h("div", { class: "columns" }, [count.element, seed.element, steps.element, resampling.element, guidance && guidance.element].filter(Boolean)),
      h("label", { class: "check" }, keep, " Keep the given pixels exactly. A seam may show; without this the decoder repaints them, and there is none."),
    ),
    job.element,
    results,
    seam,
    h("p", {}, sheet),
  );
  const own = panel.querySelector(".chip:has(:checked)");
  if (own) {
    const [chip, row] = [own, own.parentElement].map((element) => element.getBoundingClientRect());
    own.parentElement.scrollLeft += chip.left - row.left - (row.width - chip.width) / 2; // not the page
  }
  return () => job.cancel();
}
