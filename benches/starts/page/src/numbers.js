import _ from "lodash";

export function perDay(visits) {
  return _.map(_.countBy(visits, "day"), (count, day) => ({ day, count }));
}

export function busiest(days) {
  return _.maxBy(days, "count")?.day ?? "none";
}
