import type { Journey } from "./journeys";

/** In kilometres an hour; zero for a journey that takes no time. */
export function speed({ kilometres, minutes }: Journey): number {
  return minutes > 0 ? (kilometres / minutes) * 60 : 0;
}

export function total(
  journeys: readonly Journey[],
  of: (journey: Journey) => number,
): number {
  return journeys.reduce((sum, journey) => sum + of(journey), 0);
}
