import { createElement } from "react";
import { createRoot } from "react-dom/client";
import { Overview } from "./overview.js";
import { visits } from "./visits.js";

createRoot(document.getElementById("page")).render(createElement(Overview, { visits }));
