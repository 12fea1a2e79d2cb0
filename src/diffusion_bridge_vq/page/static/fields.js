// Fields of the forms: chips, numbers with their limits, and a row with action, stop and progress.

import { h, model, newId } from "./dom.js";
import { run, Stopped } from "./queue.js";

/** A group of chips of which one is chosen; `options` are [value, text]. */
export function chips(legend, options, chosen, hint) {
  const name = newId("chips");
  const inputs = options.map(([value, text]) => {
    const input = h("input", { type: "radio", name, value, checked: value === chosen });
    return h("label", { class: "chip" }, input, h("span", {}, text));
  });
  const element = h("fieldset", {}, h("legend", {}, legend), hint && h("p", { class: "hint" }, hint), h("div", { class: "chips" }, inputs));
  return {
    element,
    get value() {
      return element.querySelector("input:checked")?.value;
    },
    set value(value) {
      for (const input of element.querySelectorAll("input")) input.checked = input.value === value;
    },
  };
}

/** What is to be drawn: one of the classes, or a text where they are words. `open`, [value, text], leaves it open. */
export function classes(open, chosen, hint) {
  if (!model.words) return chips("Class", [open, ...model.classes.map((name) => [name, name])], chosen, hint);
  const [id, hintId, listId] = ["words", "hint", "list"].map(newId);
  const placeholder = model.examples[0] ?? "";
  const input = h("input", { id, placeholder, value: chosen === open[0] ? "" : chosen, autocomplete: "off", list: listId, "aria-describedby": hintId });
  const words = h("datalist", { id: listId }, [...model.examples, ...model.classes].map((text) => h("option", { value: text })));
  const text = `One or more of the model's ${model.classes.length} words. Empty: ${open[1]}.`;
  return {
    element: h("div", { class: "field" }, h("label", { for: id }, "Words"), h("div", { class: "with-button" }, input), h("p", { class: "hint", id: hintId }, text), words),
    get value() {
      return input.value.trim() || open[0];
    },
  };
}

/** A number; `limit` names its bounds among the model's. What isn't one of them is refused by its field's name. */
export function number(limit, value, { hint, label, extra } = {}) {
  const { minimum, maximum, whole, label: usual } = model.limits[limit];
  const [id, hintId, errorId] = ["field", "hint", "error"].map(newId);
  const input = h("input", {
    id,
    inputmode: whole ? "numeric" : "decimal",
    value: String(value),
    autocomplete: "off",
    "aria-describedby": `${hintId} ${errorId}`,
  });
  const error = h("p", { class: "error", id: errorId, role: "alert" });
  const element = h(
    "div",
    { class: "field" },
    h("label", { for: id }, label || usual),
    h("div", { class: "with-button" }, input, extra),
    h("p", { class: "hint", id: hintId }, hint),
    error,
  );
  input.addEventListener("input", () => field.check());
  const field = {
    element,
    input,
    get value() {
      return Number(input.value);
    },
    set value(value) {
      input.value = String(value);
      field.check();
    },
    check() {
      const text = input.value.trim();
      const number = Number(text);
      const good = text !== "" && number >= minimum && number <= maximum && (!whole || Number.isInteger(number));
      error.textContent = good
        ? ""
        : `${label || usual} must be ${whole ? "a whole number" : "a number"} from ${minimum} to ${maximum}.`;
      input.setAttribute("aria-invalid", String(!good));
      return good;
    },
  };
  return field;
}

/** Whether all fields are good; the focus goes to the first that isn't. */
export function allGood(fields) {
  const bad = fields.filter((field) => !field.check());
  if (bad.length) {
    for (let at = bad[0].input; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    bad[0].input.focus();
  }
  return !bad.length;
}

/** A button that starts a job, one that stops it while there is one, its progress and its errors. */
export function action(text, { type = "button" } = {}) {
  const start = h("button", { type, class: "primary" }, text);
  const stop = h("button", { type: "button", class: "stop", hidden: true }, "Stop");
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Progress", hidden: true });
  const status = h("p", { class: "status", role: "status" });
  const error = h("p", { class: "error box", role: "alert", hidden: true });
  let controller;

  function show(progress) {
    bar.value = progress.of ? progress.step / progress.of : 0;
    const before = progress.waiting;
    if (before) status.textContent = `Waiting for ${before === 1 ? "another job" : `${before} other jobs`} to end`;
    else status.textContent = progress.of ? `Drawing: step ${progress.step} of ${progress.of}` : "Drawing";
  }

  const job = {
    element: h("div", { class: "action" }, h("div", { class: "buttons" }, start, stop), bar, status, error),
    start,
    get busy() {
      return Boolean(controller);
    },
    cancel() {
      controller?.abort();
    },
    fail(message) {
      error.textContent = message;
      error.hidden = !message;
    },
    /** The result, or undefined if it was stopped or failed. A new job ends the one before. */
    async run(endpoint, data) {
      controller?.abort();
      const own = (controller = new AbortController());
      job.fail("");
      stop.hidden = bar.hidden = false;
      show({});
      try {
        const result = await run(endpoint, data, { onProgress: (p) => own === controller && show(p), signal: own.signal });
        if (own === controller) status.textContent = "Done.";
        return result;
      } catch (failure) {
        if (own === controller) {
          status.textContent = failure instanceof Stopped ? "Stopped." : "";
          if (!(failure instanceof Stopped)) job.fail(failure.message);
        }
      } finally {
        if (own === controller) {
          controller = undefined;
          if (document.activeElement === stop) start.focus();
          stop.hidden = bar.hidden = true;
        }
      }
    },
  };
  stop.addEventListener("click", () => job.cancel());
  return job;
}

/** Arrow keys, Home and End among the elements of a map; one of them is in the order of tabs. */
export function roving(container, columns, chosen = 0) {
  const cells = [...container.children];
  const choose = (i) => cells.forEach((cell, j) => (cell.tabIndex = i === j ? 0 : -1));
  choose(chosen);
  container.onkeydown = (event) => {
    const at = cells.indexOf(document.activeElement);
    const column = at % columns;
    const to = {
      ArrowLeft: column ? at - 1 : at,
      ArrowRight: column < columns - 1 ? at + 1 : at,
      ArrowUp: at - columns,
      ArrowDown: at + columns,
      Home: at - column,
      End: at - column + columns - 1,
    }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    if (!cells[to]) return;
    choose(to);
    cells[to].focus();
  };
  container.addEventListener("focusin", (event) => cells.includes(event.target) && choose(cells.indexOf(event.target)));
}
