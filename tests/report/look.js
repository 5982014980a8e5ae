// Looks at the page in the frame as a reader with eyes, a keyboard or a screen reader would, and lists
// what is wrong.
function look(frame) {
  const doc = frame.contentDocument, win = frame.contentWindow, wrong = [];
  const all = (what) => [...doc.querySelectorAll(what)];
  const say = (what, element) =>
    wrong.push(what + (element ? ": " + element.outerHTML.slice(0, 160) : ""));
  const shown = (element) => element.getClientRects().length > 0;

  // All that can be opened is looked at, too.
  for (const details of all("details")) details.open = true;

  if (doc.documentElement.lang !== "en") say("no language");
  if (!doc.title) say("no title");
  for (const landmark of ["header", "main"]) {
    if (all(landmark).length !== 1) say("not one " + landmark);
  }
  let level = 0;
  for (const heading of all("h1, h2, h3, h4, h5, h6")) {
    const now = Number(heading.tagName[1]);
    if (now > level + 1) say("a heading that skips a level", heading);
    if (!heading.textContent.trim()) say("an empty heading", heading);
    level = now;
  }
  if (all("h1").length !== 1) say("not one h1");

  const ids = new Set();
  for (const element of all("[id]")) {
    if (ids.has(element.id)) say("an id that comes twice", element);
    ids.add(element.id);
  }
  for (const element of all("[aria-labelledby]")) {
    for (const id of element.getAttribute("aria-labelledby").split(" ")) {
      if (!ids.has(id)) say("a label that is not there", element);
    }
  }
  for (const link of all("a[href^='#']")) {
    if (!ids.has(link.getAttribute("href").slice(1))) say("a link to nowhere", link);
  }
  for (const link of all("a, summary, button")) {
    if (!link.textContent.trim()) say("a control without a name", link);
  }
  for (const region of all("[tabindex]")) {
    if (!region.getAttribute("aria-label")) say("a place to go to without a name", region);
  }
  for (const drawing of all("svg")) {
    const named = drawing.getAttribute("role") === "img" && drawing.querySelector("title");
    if (!named && drawing.getAttribute("aria-hidden") !== "true") say("a drawing without words", drawing);
  }
  for (const head of all("th")) {
    if (!head.scope) say("a heading of a table without a scope", head);
  }

  // Contrast, by WCAG's formula.
  const parse = (colour) => {
    const numbers = colour.match(/[\d.]+/g).map(Number);
    return colour.startsWith("color(") ? numbers.slice(0, 3).map((n) => n * 255) : numbers;
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((n) => {
      const part = n / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = win.getComputedStyle(at).backgroundColor;
      const parts = parse(colour);
      if (parts.length < 4 || parts[3] > 0) return parts.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let texts = 0, least = 21;
  for (const element of all("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !shown(element)) continue;
    texts += 1;
    const style = win.getComputedStyle(element);
    const colour = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const found = ratio(parse(colour).slice(0, 3), behind(element));
    least = Math.min(least, found);
    if (found < 4.5) say("a contrast of " + found.toFixed(2), element);
  }

  const width = doc.documentElement.scrollWidth;
  if (width > win.innerWidth) {
    const wide = all("body *").find((e) => e.getBoundingClientRect().right > win.innerWidth + 1);
    say(`it is ${width} wide in a window of ${win.innerWidth}`, wide);
  }
  const asked = win.performance.getEntriesByType("resource").map((entry) => entry.name);
  if (asked.length) say("it asks for " + asked.join(" "));
  for (const element of all("script, link, img, iframe, object, embed")) say("something else", element);

  return {
    wrong, texts, least, width: win.innerWidth, dark: win.matchMedia("(prefers-color-scheme: dark)").matches,
    details: all("details").length, drawings: all("svg[role=img]").length,
    bottom: doc.documentElement.scrollHeight,
  };
}
