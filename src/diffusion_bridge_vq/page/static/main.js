// The landing: controls on the left, pictures on the right. A picture that is clicked is opened.

import { capital, die, guidanceHint, h, model, stepsText } from "./dom.js";
import { action, allGood, chips, classes as classField, number } from "./fields.js";
import { downloadSheet, settingsLine, showTiles } from "./gallery.js";
import { openPicture } from "./opened.js";

const $ = (id) => document.getElementById(id);
const { defaults, limits } = model;
let drawn = model.drawn;

document.title = `${model.name}: diffusion bridge VQ-VAE`;
$("model-name").textContent = model.name;
$("card").href = model.card;
$("paper").href = model.paper;

// controls
const anyText = !model.words ? "any" : model.examples.length ? "examples from the training data, in turn" : "single words, in turn";
const classes = model.classes.length && classField(["any", anyText], "any", "“any” takes the classes in turn.");
const count = number("num_images", defaults.num_images, { hint: "How many to draw at once." });
const rollText = "Roll a new seed and draw";
const roll = () => h("button", { type: "button", class: "dice", "aria-label": rollText, title: rollText, onclick: rollAndDraw }, die());
const seed = number("seed", defaults.seed, { hint: "The same seed draws the same picture.", extra: roll() });
const effort =
  defaults.fast_steps < defaults.num_inference_steps &&
  chips(
    "Quality or speed",
    [
      [String(defaults.num_inference_steps), `Quality: ${stepsText(defaults.num_inference_steps)}`],
      [String(defaults.fast_steps), `Speed: ${stepsText(defaults.fast_steps)}`],
    ],
    String(defaults.num_inference_steps),
    "Fewer steps are faster and lose some quality.",
  );
const steps = number("num_inference_steps", defaults.num_inference_steps, {
  hint: `Calls of the network, up to ${limits.num_inference_steps.maximum}.`,
});
const guidance =
  defaults.guidance_scale && number("guidance_scale", defaults.guidance_scale, { hint: guidanceHint });
const solver = Object.keys(model.solvers).length > 0 && select("Sampler", Object.entries(model.solvers));
if (effort) {
  effort.element.addEventListener("change", () => (steps.value = effort.value));
  steps.input.addEventListener("input", () => (effort.value = steps.input.value.trim()));
}
const draw = action("Draw", { type: "submit" });
const given = model.draws_from && pictureField();
const file = h("input", { type: "file", accept: "image/*", id: "file", class: "hidden-file" });
const fileError = h("p", { class: "error", role: "alert" });
draw.start.before(roll()); // a phone's: there the buttons are at the bottom of the screen
const phone = window.matchMedia("(max-width: 760px)").matches;
const more = h("details", {}, h("summary", {}, "More options"), ...[steps, guidance, solver].filter(Boolean).map((field) => field.element));
const own = h("div", { class: "own" }, file, h("label", { for: "file", class: "quiet" }, "Open your own picture"), fileError);
const fields = [count, seed, effort].filter(Boolean).map((field) => field.element);
const rest = h("details", { class: "rest", open: !phone }, h("summary", {}, "Number, seed, steps, own picture"), ...fields, more);
$("controls").append(...[given, classes].filter(Boolean).map((field) => field.element), rest, draw.element);
(phone ? rest : $("controls")).append(own);

function select(label, options) {
  const input = h("select", { id: "solver" }, options.map(([value, text]) => h("option", { value }, text)));
  return { element: h("div", { class: "field" }, h("label", { for: "solver" }, label), input), input };
}

/** The picture that a model draws from: its data URL, or null. */
function pictureField() {
  const input = h("input", { type: "file", accept: "image/*", id: "condition", class: "hidden-file" });
  const shown = h("img", { class: "given", alt: "The picture to draw from", hidden: true });
  const error = h("p", { class: "error", role: "alert" });
  const hint = h("p", { class: "hint" }, `A picture to draw from (${model.draws_from}). It is scaled and cropped as in training.`);
  const field = {
    element: h("div", { class: "field from" }, input, h("label", { for: "condition", class: "quiet" }, "Draw from a picture"), hint, shown, error),
    value: null,
    check() {
      error.textContent = field.value ? "" : "Choose a picture to draw from.";
      return Boolean(field.value);
    },
    input,
  };
  input.addEventListener("change", async () => {
    const [chosen] = input.files;
    input.value = ""; // the same file may be chosen again
    try {
      shown.src = field.value = await readFile(chosen);
      shown.hidden = false;
      error.textContent = "";
    } catch (failure) {
      error.textContent = failure.message;
    }
  });
  return field;
}

// pictures
function show() {
  const { images, settings } = drawn;
  $("sheet").hidden = !images.length;
  if (!images.length) {
    $("sentence").textContent = "This model draws from a picture. Choose one, and draw.";
    return;
  }
  const map = `${model.map_size} × ${model.map_size}`;
  $("sentence").textContent =
    `${images.length === 1 ? "This picture" : "Each picture"} began as noise: in ${stepsText(settings.num_inference_steps)} a ` +
    `diffusion bridge turned it into ${map} codes out of ${model.num_codes}, and a decoder painted them as ` +
    `${model.image_size} × ${model.image_size} pixels. Click a picture to open it.`;
  showTiles($("pictures"), images, (i) => openPicture(images, i, settings));
}

async function drawAgain() {
  if (!allGood([given, count, seed, steps, guidance].filter(Boolean))) return;
  const request = {
    class_name: classes ? classes.value : "any",
    num_inference_steps: steps.value,
    guidance_scale: guidance ? guidance.value : null,
    solver: solver ? solver.input.value : null,
    condition: given ? given.value : null,
  };
  const { class_name, ...how } = request;
  $("main").setAttribute("aria-busy", "true");
  const result = await draw.run("generate", [class_name, count.value, seed.value, ...Object.values(how)]);
  if (!draw.busy) $("main").removeAttribute("aria-busy");
  if (!result) return;
  drawn = result;
  for (const image of drawn.images) image.condition = request.condition; // what its story needs
  show();
}

$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  drawAgain();
});
function rollAndDraw() {
  seed.value = Math.floor(Math.random() * 1e6);
  drawAgain();
}
$("sheet").addEventListener("click", () => {
  const { images, settings } = drawn;
  const [first, last] = [images[0], images.at(-1)];
  const same = images.every((image) => image.class_name === first.class_name);
  const parts = [model.name, ...(model.classes.length ? [same ? first.class_name : "any"] : [])];
  parts.push(images.length > 1 ? `seeds${first.seed}-${last.seed}` : `seed${first.seed}`);
  const which = model.classes.length ? (same ? `class ${first.class_name}, ` : "any class, ") : "";
  const lines = [`${model.name}: ${which}seeds ${first.seed} to ${last.seed}, unselected`, capital(settingsLine(settings))];
  downloadSheet(images, lines, parts.join("_").replace(/[^\w.-]/g, "-") + ".png");
});
file.addEventListener("change", async () => {
  const [chosen] = file.files;
  file.value = ""; // the same file may be chosen again
  fileError.textContent = "";
  try {
    await openFile(chosen);
  } catch (error) {
    fileError.textContent = error.message;
  }
});

function readFile(chosen) {
  if (chosen.size > 20 * 1024 ** 2) throw new Error(`${chosen.name} is larger than 20 MB: choose a smaller file.`);
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(`data:application/octet-stream;base64,${reader.result.split(",")[1] ?? ""}`);
    reader.onerror = () => reject(new Error(`${chosen.name} can't be read.`));
    reader.readAsDataURL(chosen);
  });
}

async function openFile(chosen) {
  const url = await readFile(chosen);
  const { run } = await import("./queue.js");
  const { png, size, codes, decoded } = await run("encode", [url]).catch((error) => {
    throw new Error(`${chosen.name}: ${error.message}`);
  });
  const side = model.image_size;
  const note =
    size[0] === side && size[1] === side
      ? ""
      : `Scaled and cropped from ${size[0]} × ${size[1]} to ${side} × ${side} pixels, as in training.`;
  openPicture([{ png, codes, decoded, title: chosen.name, file_name: `${model.name}_own.png`, note, condition: given ? given.value : null }], 0, null);
}

show();
