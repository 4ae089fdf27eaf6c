"use strict";

// Tables: a click on a heading sorts by it, a second click turns the order; words in the field keep the rows that have them all.

function valueOf(cell) {
  const text = cell.dataset.value ?? cell.textContent;
  return cell.classList.contains("number") ? Number(text) : text.trim().toLowerCase();
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(table, heading) {
  const body = table.tBodies[0];
  const place = heading.cellIndex;
  const isNumber = [...body.rows].some((row) => row.cells[place].classList.contains("number"));
  const before = heading.getAttribute("aria-sort");
  // Numbers come largest first, which is where a reader looks; words come in the order of the alphabet.
  const first = isNumber ? "descending" : "ascending";
  const order = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].map((row) => [row, row.cells[place].textContent.trim() === "", valueOf(row.cells[place])]);
  rows.sort((a, b) => a[1] - b[1] || sign * compare(a[2], b[2]));
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", other === heading ? order : "none");
  body.append(...rows.map(([row]) => row));
}

function filter(figure, words) {
  const wanted = words.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const row of figure.querySelector("tbody").rows) {
    const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  figure.querySelector(".none").hidden = shown > 0;
}

for (const figure of document.querySelectorAll("figure.table")) {
  const table = figure.querySelector("table");
  for (const heading of table.tHead.rows[0].cells) {
    heading.firstElementChild.addEventListener("click", () => sortBy(table, heading));
  }
  figure.querySelector("input")?.addEventListener("input", (event) => filter(figure, event.target.value));
}

// The sections that this page has, and where the reader is.

const nav = document.querySelector("nav");
const links = new Map();
for (const section of document.querySelectorAll("main > section")) {
  const link = document.createElement("a");
  link.href = `#${section.id}`;
  link.textContent = section.querySelector("h2").textContent;
  links.set(section, link);
  nav.append(link);
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) links.get(entry.target).classList.toggle("here", entry.isIntersecting);
  },
  { rootMargin: "-45% 0px -50% 0px" },
);
for (const section of links.keys()) seen.observe(section);

// Videos of one clip are compared best when they run together.

const videos = [...document.querySelectorAll("video")];
if (videos.length > 1) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "together";
  button.textContent = "Play all";
  button.addEventListener("click", () => {
    const start = videos.some((video) => video.paused);
    for (const video of videos) {
      if (start) {
        video.currentTime = 0;
        video.play();
      } else {
        video.pause();
      }
    }
    button.textContent = start ? "Pause all" : "Play all";
  });
  document.querySelector("#videos h2").after(button);
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = false)));
