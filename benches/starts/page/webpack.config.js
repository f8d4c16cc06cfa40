// Debian keeps the modules of all programs in one place.
module.exports = {
  entry: "./src/index.js",
  resolve: { modules: ["/usr/share/nodejs"] },
};
