"use strict";

const swagger = document.getElementById("swagger-ui");
if (swagger) {
  SwaggerUIBundle({
    url: new URL(swagger.dataset.document, location.href).href,
    domNode: swagger,
    deepLinking: true,
    validatorUrl: null, // else a foreign service is asked about the document
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    tryItOutEnabled: true,
    onComplete: () => document.querySelector("#servers")?.setAttribute("aria-label", "Server"),
  });
}

// The commands name the address that this page came from.
for (const place of document.querySelectorAll("[data-origin]")) {
  place.textContent = place.dataset.origin === "ws" ? location.origin.replace(/^http/, "ws") : location.origin;
}

for (const block of document.querySelectorAll("pre.copy")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy-button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const code = block.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // No clipboard without a secure context: leave the text selected instead.
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  const frame = document.createElement("div");
  frame.className = "copy-frame";
  block.replaceWith(frame);
  frame.append(block, button);
}

// What scrolls sideways must be reachable without a mouse; what does not is no stop on the way.
const scrollers = document.querySelectorAll(".layout pre, .layout .wide");
const reach = () => {
  for (const scroller of scrollers) {
    if (scroller.scrollWidth > scroller.clientWidth) scroller.tabIndex = 0;
    else scroller.removeAttribute("tabindex");
  }
};
addEventListener("resize", reach);
reach();
