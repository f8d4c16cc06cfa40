import { createElement, useState } from "react";
import { busiest, perDay } from "./numbers.js";

function Day({ day, count }) {
  return createElement("li", null, `${day}: ${count}`);
}

export function Overview({ visits }) {
  const [open, setOpen] = useState(false);
  const days = perDay(visits);
  return createElement(
    "section",
    null,
    createElement("h1", null, `Most visits: ${busiest(days)}`),
    createElement("button", { onClick: () => setOpen(!open) }, open ? "Less" : "More"),
    open && createElement("ul", null, days.map((day) => createElement(Day, { key: day.day, ...day }))),
  );
}
