import { useMemo, useState } from "react";
import type { Journey } from "./journeys";
import { speed, total } from "./numbers";

type Column = "kilometres" | "minutes";

export function Table({ journeys }: { journeys: readonly Journey[] }) {
  const [column, setColumn] = useState<Column>("kilometres");
  const sorted = useMemo(
    () => [...journeys].sort((a, b) => a[column] - b[column]),
    [journeys, column],
  );
  return (
    <table>
      <thead>
        <tr>
          <th>Journey</th>
          <th onClick={() => setColumn("kilometres")}>km</th>
          <th onClick={() => setColumn("minutes")}>min</th>
          <th>km/h</th>
        </tr>
      </thead>
      <tbody>
        {sorted.map((journey) => (
          <tr key={`${journey.from} ${journey.to}`}>
            <td>
              {journey.from} to {journey.to}
            </td>
            <td>{journey.kilometres}</td>
            <td>{journey.minutes}</td>
            <td>{speed(journey).toFixed(1)}</td>
          </tr>
        ))}
      </tbody>
      <tfoot>
        <tr>
          <td>All</td>
          <td>{total(journeys, (journey) => journey.kilometres)}</td>
          <td>{total(journeys, (journey) => journey.minutes)}</td>
          <td />
        </tr>
      </tfoot>
    </table>
  );
}
