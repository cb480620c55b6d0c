// In the page that draws figures: every text of a figure becomes outlines, so that no reader needs
// its font. Set before this: `glyphs`, path by weight and character; `fontReady`, a promise.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const UNITS = 2048; // font units per em
  const short = (number) => String(+number.toFixed(2));

  const outlined = (source) => {
    const root = document.importNode(
      new DOMParser().parseFromString(source, "image/svg+xml").documentElement, true);
    document.body.append(root); // positions are known only of what is laid out
    const used = new Map();
    try {
      for (const text of root.querySelectorAll("text")) {
        const shape = drawn(text, used);
        if (shape) text.replaceWith(shape);
      }
      const defs = document.createElementNS(SVG, "defs");
      defs.innerHTML = [...used].sort().map(([id, d]) => `<path id="${id}" d="${d}"/>`).join("");
      root.prepend(defs);
      return new XMLSerializer().serializeToString(root);
    } finally {
      root.remove();
    }
  };

  // The text as uses of glyphs; null, which leaves it a text, where the font lacks one of them.
  const drawn = (text, used) => {
    const group = document.createElementNS(SVG, "g");
    group.setAttribute("class", `text ${text.getAttribute("class") || ""}`.trim());
    if (text.hasAttribute("transform")) {
      group.setAttribute("transform", text.getAttribute("transform"));
    }
    group.setAttribute("role", "img");
    group.setAttribute("aria-label", text.textContent.replace(/\u200b/g, "").trim());
    if (text.style.opacity) group.setAttribute("opacity", text.style.opacity);
    const nodes = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
    let run = null;
    let at = "";
    let index = 0;
    while (nodes.nextNode()) {
      const style = getComputedStyle(nodes.currentNode.parentElement);
      const weight = Number(style.fontWeight) >= 600 ? "bold" : "normal";
      const scale = parseFloat(style.fontSize) / UNITS;
      if (style.fontStyle !== "normal") return null;
      for (const character of nodes.currentNode.data) {
        const start = index;
        index += character.length;
        if (character === "\u200b" || start >= text.getNumberOfChars()) continue;
        const path = glyphs[weight][character];
        if (path === undefined) return null;
        if (path === "") continue; // a space
        const {x, y} = text.getStartPositionOfChar(start);
        const key = [y, scale, weight, style.fill, style.fillOpacity].join();
        if (key !== at) {
          run = document.createElementNS(SVG, "g");
          run.setAttribute("fill", style.fill);
          if (style.fillOpacity !== "1") run.setAttribute("fill-opacity", style.fillOpacity);
          run.x = x;
          const factor = scale.toPrecision(4);
          run.setAttribute(
            "transform", `translate(${short(x)} ${short(y)})scale(${factor} -${factor})`);
          group.append(run);
          at = key;
        }
        const id = `gi-${weight[0]}${character.codePointAt(0).toString(16)}`;
        used.set(id, path);
        const glyph = document.createElementNS(SVG, "use");
        glyph.setAttributeNS("http://www.w3.org/1999/xlink", "xlink:href", `#${id}`);
        const along = Math.round((x - run.x) / scale);
        if (along) glyph.setAttribute("x", along);
        run.append(glyph);
      }
    }
    return group;
  };

  const address = (svg) => "data:image/svg+xml," + encodeURIComponent(svg);

  const plain = Plotly.toImage;
  Plotly.toImage = async (figure, options) => {
    await fontReady;
    const svg = outlined(
      await plain(figure, {...options, format: "svg", scale: 1, imageDataOnly: true}));
    if (options.format === "svg") return options.imageDataOnly ? svg : address(svg);
    const image = new Image();
    image.src = address(svg);
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(options.width * options.scale);
    canvas.height = Math.round(options.height * options.scale);
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const png = canvas.toDataURL("image/png");
    return options.imageDataOnly ? png.split(",")[1] : png;
  };
})();
