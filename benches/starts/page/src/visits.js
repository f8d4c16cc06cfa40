export const visits = [
  { day: "Monday", page: "/" },
  { day: "Monday", page: "/news" },
  { day: "Tuesday", page: "/" },
];
