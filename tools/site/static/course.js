// The model on the first page wears the book's colours; parts without a name get one.
(function () {
  "use strict";

  function dress() {
    const frame = document.getElementById("model");
    if (!frame) return;
    const hash = "#" + (document.documentElement.dataset.theme || "light");
    const address = frame.dataset.address + hash;
    if (frame.dataset.shown === address) return;
    frame.dataset.shown = address;
    if (frame.getAttribute("src")) frame.contentWindow.location.replace(address);
    else frame.src = address;
  }

  // Names for two parts that the theme leaves without one.
  function name() {
    for (const handle of document.querySelectorAll(".bd-sidebar-primary summary")) {
      const page = handle.closest("li").querySelector("a");
      handle.setAttribute("aria-label", "Pages under " + page.textContent.trim());
    }
    const brand = document.querySelector(".bd-sidebar-primary .navbar-brand");
    if (brand) brand.parentElement.setAttribute("role", "banner");
  }

  new MutationObserver(dress).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  document.addEventListener("DOMContentLoaded", () => (dress(), name()));
})();
