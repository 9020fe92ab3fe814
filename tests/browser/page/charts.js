// Drawing: a scatter on a canvas, and error against memory as SVG.

export const colour = (k, count) => `oklch(${k % 2 ? 0.72 : 0.58} 0.16 ${(360 * k) / count})`;

// points: x, y, x, y, ...; `only` is a component to show alone, or null.
export function scatter(canvas, points, assigned, count, only = null) {
  const scale = devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext('2d');
  context.scale(scale, scale);
  const range = (offset) => {
    let [low, high] = [Infinity, -Infinity];
    for (let i = offset; i < points.length; i += 2) [low, high] = [Math.min(low, points[i]), Math.max(high, points[i])];
    return [low, high - low || 1];
  };
  const [[x0, dx], [y0, dy]] = [range(0), range(1)];
  const margin = 10;
  const draw = (row, alpha) => {
    context.globalAlpha = alpha;
    context.fillStyle = colour(assigned[row], count);
    context.beginPath();
    const x = margin + ((points[2 * row] - x0) / dx) * (width - 2 * margin);
    const y = height - margin - ((points[2 * row + 1] - y0) / dy) * (height - 2 * margin);
    context.arc(x, y, only === null || assigned[row] === only ? 2.4 : 1.6, 0, 7);
    context.fill();
  };
  const rows = Array.from(assigned.keys());
  for (const row of rows) if (only === null || assigned[row] !== only) draw(row, only === null ? 0.75 : 0.08);
  for (const row of rows) if (assigned[row] === only) draw(row, 0.95);
}

const percent = (x) => `${+(100 * x).toPrecision(2)} %`;

// series: [{ name, points: [{ x, y, label }] }] on logarithmic axes; the last is a single point.
export function tradeoff(into, series, x_title, y_title) {
  const [width, height, left, right, top, bottom] = [640, 440, 62, 26, 30, 50];
  const all = series.flatMap((one) => one.points);
  const ticks = (values, steps) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const list = [];
    for (let decade = -6; decade <= 1; decade++) for (const step of steps) list.push(step * 10 ** decade);
    const from = list.filter((tick) => tick <= low).at(-1);
    return list.filter((tick) => tick >= from && tick <= (list.find((other) => other >= high) ?? high));
  };
  const [xs, ys] = [ticks(all.map((p) => p.x), [1, 2, 5]), ticks(all.map((p) => p.y), [1])];
  const along = (list, from, to) => (value) => from + ((to - from) * Math.log(value / list[0])) / Math.log(list.at(-1) / list[0]);
  const [px, py] = [along(xs, left, width - right), along(ys, height - bottom, top)];
  const parts = [`<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${y_title} against ${x_title}">`];
  for (const tick of xs) parts.push(`<line class="grid" x1="${px(tick)}" x2="${px(tick)}" y1="${top}" y2="${height - bottom}"/><text x="${px(tick)}" y="${height - bottom + 20}" text-anchor="middle">${percent(tick)}</text>`);
  for (const tick of ys) parts.push(`<line class="grid" y1="${py(tick)}" y2="${py(tick)}" x1="${left}" x2="${width - right}"/><text x="${left - 8}" y="${py(tick) + 4}" text-anchor="end">${percent(tick)}</text>`);
  parts.push(`<text x="${(left + width - right) / 2}" y="${height - 6}" text-anchor="middle">${x_title}</text><text x="8" y="14">${y_title}</text>`);
  series.forEach(({ name, points }, index) => {
    const paint = `var(--c${index}, var(--ink))`;
    if (points.length > 1) parts.push(`<polyline class="line" stroke="${paint}" points="${points.map((p) => `${px(p.x)},${py(p.y)}`).join(' ')}"/>`);
    for (const p of points) parts.push(`<circle class="mark" fill="${paint}" r="5" cx="${px(p.x)}" cy="${py(p.y)}"><title>${name}${p.label ? `, ${p.label}` : ''}: ${percent(p.x)} of the memory, error ${percent(p.y)}</title></circle>`);
    const [end, alone] = [points.at(-1), points.length === 1];
    parts.push(`<text style="fill: ${paint}; font-weight: 600" x="${px(end.x) + (alone ? -10 : 10)}" y="${py(end.y) + 4}" text-anchor="${alone ? 'end' : 'start'}">${name}</text>`);
  });
  into.innerHTML = `${parts.join('')}</svg>`;
}
