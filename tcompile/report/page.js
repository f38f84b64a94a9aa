// The viewer of token maps: which image, and how deep. Without this script all maps are shown.
(() => {
  const root = document.querySelector("#viewer");
  const controls = root && root.querySelector(".controls");
  if (!controls) return; // a page without images
  document.documentElement.classList.add("js");
  const images = [...root.querySelectorAll(".image")];
  const depth = root.querySelector("#depth");
  const told = root.querySelector("#told");
  const every = root.querySelector("#every");
  const chosen = () => Number((root.querySelector("input[name=image]:checked") || { value: 0 }).value);
  const show = () => {
    images.forEach((image, i) => {
      image.hidden = i !== chosen();
      image.classList.toggle("single", !(every && every.checked));
      image.querySelectorAll(".step").forEach((step, j) => {
        step.classList.toggle("on", Boolean(depth) && j === Number(depth.value));
      });
    });
    if (!depth) return;
    const on = images[chosen()].querySelectorAll(".step")[depth.value];
    const text = on.querySelector("figcaption").textContent.replace(/\s+/g, " ").trim();
    depth.setAttribute("aria-valuetext", text);
    told.textContent = text;
  };
  controls.hidden = false;
  root.addEventListener("input", show);
  show();
})();
