export interface Journey {
  readonly from: string;
  readonly to: string;
  readonly kilometres: number;
  readonly minutes: number;
}

export const journeys: readonly Journey[] = [
  { from: "Aston", to: "Burford", kilometres: 12.5, minutes: 21 },
  { from: "Burford", to: "Clanfield", kilometres: 8.1, minutes: 14 },
  { from: "Clanfield", to: "Aston", kilometres: 15.9, minutes: 30 },
];
