"use strict";

// Values under the pointer, or under the arrow keys: the legend shows them, a line marks the step.
for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const series = JSON.parse(figure.dataset.series);
  const [left, right, last] = JSON.parse(figure.dataset.frame);
  const shown = [...figure.querySelectorAll(".legend li")].map((item) => ({
    value: item.querySelector("output"),
    step: item.querySelector("small"),
  }));
  const initial = shown.map(({ value, step }) => [value.textContent, step.textContent]);
  const steps = [...new Set(series.flatMap((one) => one.steps))].sort((a, b) => a - b);
  let current = steps.length;

  const nearest = (all, step) =>
    all.reduce((best, one, i) => (Math.abs(one - step) < Math.abs(all[best] - step) ? i : best), 0);

  function show(step) {
    const x = left + (step / last) * (right - left);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    series.forEach((one, i) => {
      const at = nearest(one.steps, step);
      shown[i].value.textContent = one.texts[at];
      shown[i].step.textContent = `step ${one.steps[at].toLocaleString("en")}`;
    });
  }

  function rest() {
    current = steps.length;
    cursor.setAttribute("visibility", "hidden");
    initial.forEach(([value, step], i) => {
      shown[i].value.textContent = value;
      shown[i].step.textContent = step;
    });
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    current = nearest(steps, ((x - left) / (right - left)) * last);
    show(steps[current]);
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    current = Math.min(steps.length - 1, Math.max(0, current + move));
    show(steps[current]);
  });
  svg.addEventListener("pointerleave", rest);
  svg.addEventListener("blur", rest);
}

for (const box of document.querySelectorAll(".only-differing")) {
  const table = box.closest(".configuration").querySelector("table");
  const filter = () => table.classList.toggle("filtered", box.checked);
  box.addEventListener("change", filter);
  filter(); // a reload keeps the box as it was
}

// Controls hide a small video's first picture: they come with the pointer or the keyboard.
for (const video of document.querySelectorAll("video")) {
  video.controls = false;
  video.tabIndex = 0;
  for (const event of ["pointerenter", "focus", "play"]) {
    video.addEventListener(event, () => { video.controls = true; });
  }
  video.addEventListener("pointerleave", () => { video.controls = !video.paused; });
}

// Paper has nothing to unfold.
window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
