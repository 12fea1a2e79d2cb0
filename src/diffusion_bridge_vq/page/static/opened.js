// One picture, large, and its story: complete part of it, show how it came about, show its codes.

import { h, model, nameOf } from "./dom.js";
import { settingsLine } from "./gallery.js";
import { chainChapter } from "./chain.js";
import { codesChapter } from "./codes.js";
import { completeChapter } from "./complete.js";

const landing = document.getElementById("landing");
const opened = document.getElementById("opened");
let leave = () => {}; // ends what a chapter has under way
let chapterOpen; // its text, which stays when one goes to the next picture
const before = []; // what was there before each picture that is open, to go back to

/**
 * Open picture `i` of `pictures`; `settings` are those that drew them. A picture has `png`, `file_name` and, if they
 * are known, `class_name`, `seed`, `codes`, `decoded` (the codes' picture, where it differs), `title` and `note`.
 */
export function openPicture(pictures, i, settings) {
  before.push({ nodes: [...opened.childNodes], leave, chapterOpen, focus: document.activeElement, scroll: window.scrollY });
  history.pushState({ depth: before.length }, "");
  leave = () => {};
  chapterOpen = undefined;
  landing.hidden = true;
  opened.hidden = false;
  document.body.classList.add("has-opened");
  show(pictures, i, settings);
  window.scrollTo(0, 0);
}

window.addEventListener("popstate", (event) => {
  const depth = event.state?.depth ?? 0;
  if (depth > before.length) return history.go(before.length - depth); // forward: what was left isn't kept
  if (depth === before.length) return;
  leave();
  for (const { leave } of before.slice(depth + 1)) leave();
  const kept = before[depth];
  before.length = depth;
  ({ leave, chapterOpen } = kept);
  opened.replaceChildren(...kept.nodes);
  opened.hidden = !before.length;
  landing.hidden = !opened.hidden;
  document.body.classList.toggle("has-opened", !opened.hidden);
  window.scrollTo(0, kept.scroll);
  (kept.focus?.isConnected ? kept.focus : document.getElementById("main")).focus({ preventScroll: true });
});

function show(pictures, i, settings) {
  const picture = pictures[i];
  const image = h("img", { src: picture.png, alt: `${nameOf(picture)}, large`, draggable: "false" });
  const stage = h("div", { class: "stage" }, image, h("div"));
  stage.style.setProperty("--map", model.map_size);
  const panel = h("div", { class: "panel" });
  const about = [picture.note, settings && `Drawn in ${settingsLine(settings)}.`].filter(Boolean).join(" ");

  const reset = () => {
    leave();
    leave = () => {};
    image.src = picture.png;
    place.layer = h("div", { class: "layer" }); // a new one, without what a chapter left
    stage.lastChild.replaceWith(place.layer);
    panel.replaceChildren();
  };
  const place = { picture, settings, image, panel };
  const chapters = [
    model.completes && ["Complete part of it", "Hide patches, and let the model draw them anew.", () => completeChapter(place, openPicture)],
    picture.seed != null &&
      settings &&
      !settings.jump_n_sample && ["Show how it came about", "From noise to the picture, step by step.", () => chainChapter(place)],
    ["Show its codes", `${model.map_size} × ${model.map_size} numbers that the decoder paints. Swap one and see what changes.`, () => codesChapter(place)],
  ].filter(Boolean);
  const buttons = chapters.map(([text, what, chapter]) => {
    const button = h("button", { type: "button", class: "chapter", "aria-pressed": "false" }, h("b", {}, text), h("span", { class: "what" }, what));
    button.addEventListener("click", () => {
      const chosen = button.getAttribute("aria-pressed") !== "true";
      reset();
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button && chosen));
      chapterOpen = chosen ? text : undefined;
      if (chosen) leave = chapter() || (() => {});
    });
    return button;
  });
  const step = (text, by) =>
    h("button", { type: "button", class: "quiet", disabled: !pictures[i + by], onclick: () => show(pictures, i + by, settings) }, text);
  const heading = h("h2", { tabindex: "-1" }, nameOf(picture));
  opened.replaceChildren(
    h(
      "div",
      { class: "bar" },
      h("button", { type: "button", class: "quiet", id: "back", onclick: () => history.back() }, "← Back"),
      pictures.length > 1 && h("span", { class: "steps" }, step("Previous", -1), step("Next", 1)) || null,
    ),
    h(
      "div",
      { class: "story" },
      h(
        "div",
        { class: "left" },
        heading,
        stage,
        h(
          "p",
          { class: "under" },
          h("a", { class: "quiet", href: picture.png, download: picture.file_name }, "Download"),
          h("span", { class: "hint" }, about),
        ),
      ),
      h("div", { class: "right" }, h("div", { class: "chapters", role: "group", "aria-label": "What to do with it" }, buttons), model.completes ? null : h("p", { class: "hint" }, "A model of few steps can't complete pictures; the model that it learned from can."), panel),
    ),
  );
  reset();
  const again = chapters.findIndex(([text]) => text === chapterOpen);
  if (again >= 0) buttons[again].click();
  heading.focus({ preventScroll: true });
}
