function courseA11y() {
  // an icon-only <summary> in the sidebar needs a name
  document.querySelectorAll("details > summary").forEach((s) => {
    if (!s.textContent.trim() && !s.getAttribute("aria-label")) {
      const a = s.closest("li")?.querySelector(":scope > a");
      s.setAttribute("aria-label", "Expand section " + (a ? a.textContent.trim() : ""));
    }
  });
  // the accessible name must contain the visible text (WCAG 2.5.3)
  document.querySelectorAll("button[aria-label], summary[aria-label], a[aria-label]").forEach((e) => {
    const seen = e.innerText.replace(/\s+/g, " ").trim();
    const label = e.getAttribute("aria-label");
    if (seen && !label.toLowerCase().includes(seen.toLowerCase())) e.setAttribute("aria-label", seen);
  });
  // whatever scrolls sideways must be reachable with the keyboard
  document.querySelectorAll("article pre, article div.math, article table, article .output").forEach((e) => {
    if (e.scrollWidth > e.clientWidth + 1) e.tabIndex = 0;
  });
}
// the theme fills in its colour-mode button after load, so run again then, and after MathJax
window.addEventListener("DOMContentLoaded", courseA11y);
window.addEventListener("load", () => {
  setTimeout(courseA11y, 0);
  window.MathJax?.startup?.promise?.then(courseA11y);
});
window.addEventListener("resize", courseA11y);
