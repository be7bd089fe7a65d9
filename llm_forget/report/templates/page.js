"use strict";
(() => {
  const figures = [...document.querySelectorAll("script[data-figure]")].map((source) => ({
    element: document.getElementById(source.dataset.figure), source,
  }));
  const settings = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  const draw = ({ element, source }) => {
    if (element.dataset.drawn || element.offsetParent === null) return;
    element.dataset.drawn = "yes";
    const figure = JSON.parse(source.textContent);
    if (element.clientWidth < 560) {
      Object.assign(figure.layout.margin, { l: 48, r: 8 });
      figure.layout.title.font.size = 15;
      figure.layout.font.size = 11;
    }
    Plotly.newPlot(element, figure.data, figure.layout, settings);
  };
  figures.forEach(draw);
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => figures.forEach(draw)));

  const value = (cell) => (cell.dataset.sort === undefined ? NaN : Number(cell.dataset.sort));
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((one, other) => {
        const [a, b] = [one.cells[column], other.cells[column]];
        const [x, y] = [value(a), value(b)];
        if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;  // what was not measured stays last
        const order = Number.isNaN(x) ? a.textContent.localeCompare(b.textContent, "en", { numeric: true }) : x - y;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    }));
  });

  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open]):not(.screen)")];
    closed.forEach((details) => { details.open = true; });
    figures.forEach(draw);
    figures.forEach(({ element }) => { if (element.dataset.drawn) Plotly.relayout(element, { width: 660 }); });
  });
  window.addEventListener("afterprint", () => {
    closed.forEach((details) => { details.open = false; });
    figures.forEach(({ element }) => { if (element.dataset.drawn) Plotly.relayout(element, { width: null, autosize: true }); });
  });
})();
