import { createRoot } from "react-dom/client";
import { journeys } from "./journeys";
import { Table } from "./Table";

const page = document.getElementById("page");
if (page) {
  createRoot(page).render(<Table journeys={journeys} />);
}
