// Small helpers to build the page.

export const model = JSON.parse(document.getElementById("model").textContent);

/** An element: h("button", {class: "quiet", onclick: f}, "Text"). */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

let count = 0;
export const newId = (name) => `${name}-${++count}`;

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export const guidanceHint = `Higher follows the ${model.draws_from ? "picture" : "class"} more closely; 1 is off.`;

/** "1 step", "12 steps" */
export const stepsText = (steps) => `${steps} step${steps === 1 ? "" : "s"}`;

/** "Airplane, seed 3" */
export function nameOf(picture) {
  const parts = [];
  if (picture.title) parts.push(picture.title);
  else if (picture.class_name && picture.class_name !== "none") parts.push(capital(picture.class_name));
  if (picture.seed != null) parts.push(`seed ${picture.seed}`);
  return capital(parts.join(", ") || "picture");
}

/** A die that shows five. */
export function die() {
  const holder = document.createElement("span");
  const dots = [[7, 7], [17, 7], [12, 12], [7, 17], [17, 17]].map(([x, y]) => `<circle cx="${x}" cy="${y}" r="1.9" fill="currentColor"/>`);
  holder.innerHTML = `<svg viewBox="0 0 24 24" width="24" height="24" aria-hidden="true"><rect x="2" y="2" width="20" height="20" rx="4" fill="none" stroke="currentColor" stroke-width="1.8"/>${dots.join("")}</svg>`;
  return holder.firstChild;
}

export function download(url, name) {
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

export function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("The picture can't be shown."));
    image.src = url;
  });
}
