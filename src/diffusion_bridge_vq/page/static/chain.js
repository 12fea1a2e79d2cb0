// How a picture came about: the latents' nearest codes, painted, from noise to the last step.

import { h } from "./dom.js";
import { action } from "./fields.js";

const STRIP = 6;

export function chainChapter({ picture, settings, image, panel }) {
  const job = action("Try again");
  const label = h("p", { class: "now", "aria-live": "polite" });
  const slider = h("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Step" });
  const play = h("button", { type: "button", class: "quiet" }, "Play");
  const strip = h("ol", { class: "strip" });
  const rest = h("div", { hidden: true }, label, h("div", { class: "scrub" }, play, slider), strip);
  let frames = [];
  let timer;

  const title = ({ step, of }) => (step === 0 ? "Noise, before the first step" : step === of ? `Step ${step} of ${of}: the picture` : `Step ${step} of ${of}`);
  function show(i) {
    slider.value = i;
    image.src = frames[i].png;
    label.textContent = title(frames[i]);
    slider.setAttribute("aria-valuetext", title(frames[i]));
    for (const item of strip.querySelectorAll("button")) item.setAttribute("aria-pressed", String(Number(item.dataset.frame) === i));
  }
  function stop() {
    clearInterval(timer);
    timer = undefined;
    play.textContent = "Play";
  }
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Pause";
    if (Number(slider.value) === frames.length - 1) show(0);
    timer = setInterval(() => {
      show(Number(slider.value) + 1);
      if (Number(slider.value) === frames.length - 1) stop();
    }, Math.max(80, 2500 / frames.length));
  });
  slider.addEventListener("input", () => {
    stop();
    show(Number(slider.value));
  });

  async function record() {
    stop();
    job.start.hidden = true; // but for a job that failed or was stopped
    const { num_inference_steps, guidance_scale = null, solver = null } = settings;
    const result = await job.run("chain", [picture.class_name, picture.seed, num_inference_steps, guidance_scale, solver, picture.condition ?? null]);
    job.start.hidden = false;
    if (!result) return;
    frames = result.frames;
    slider.max = frames.length - 1;
    const most = Math.min(STRIP, frames.length);
    const chosen = Array.from({ length: most }, (_, i) => Math.round((i * (frames.length - 1)) / Math.max(1, most - 1)));
    strip.replaceChildren(
      ...[...new Set(chosen)].map((i) =>
        h(
          "li",
          {},
          h(
            "button",
            { type: "button", class: "tile", "data-frame": i, "aria-label": title(frames[i]), onclick: () => (stop(), show(i)) },
            h("img", { src: frames[i].png, alt: "" }),
          ),
          h("p", { class: "caption" }, i === 0 ? "noise" : `step ${frames[i].step}`),
        ),
      ),
    );
    rest.hidden = false;
    if (job.element.contains(document.activeElement)) play.focus();
    job.element.hidden = true; // the frames say that it is done
    show(0);
    play.click();
  }

  job.start.addEventListener("click", record);
  panel.replaceChildren(
    h("p", {}, "The bridge starts from noise. After each step the nearest codes of what it has so far are painted: first what is where, then the details."),
    rest,
    job.element,
  );
  record();
  return () => {
    stop();
    job.cancel();
  };
}
