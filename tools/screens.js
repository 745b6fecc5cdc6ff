// What is amiss in an explorer's page, as sentences; `top`: the slider and a result belong in the first screen.
(top) => {
  const found = [], root = document.querySelector('.mlx'), box = (e) => e.getBoundingClientRect();
  const say = (e) => (e.textContent || e.getAttribute('aria-label') || e.className).trim().slice(0, 40);
  const shown = (e) => e.offsetParent !== null && box(e).width > 0;
  if (document.documentElement.scrollWidth > window.innerWidth) found.push('the page is wider than the window');
  const inner = box(root);
  for (const e of root.querySelectorAll('button, h2, h3, p, label, select, input, .mlx-stage, .mlx-chip, .mlx-scale, .mlx-segment')) {
    if (!shown(e) || e.closest('.mlx-hear, .mlx-file, .mlx-empty')) continue;
    const b = box(e);
    if (b.left < inner.left - 1 || b.right > inner.right + 1) found.push(`outside: ${say(e)}`);
    if (!e.matches('select, input, .mlx-stage, .mlx-line') && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflow !== 'visible')
      found.push(`cut: ${say(e)}`);
  }
  const figures = [...root.querySelectorAll('.mlx-figure')].filter(shown);
  for (const f of figures) for (const e of f.querySelectorAll('.mlx-caption *, h3')) {
    if (shown(e) && !e.closest('.mlx-chips') && (box(e).right > box(f).right + 1 || box(e).left < box(f).left - 1)) found.push(`out of its figure: ${say(e)}`);
  }
  for (const a of figures) for (const b of figures) {
    const [x, y] = [box(a), box(b)];
    if (a !== b && x.left < y.right - 1 && y.left < x.right - 1 && x.top < y.bottom - 1 && y.top < x.bottom - 1) found.push(`${say(a)} lies over ${say(b)}`);
  }
  for (const grid of root.querySelectorAll('.mlx-grid')) {
    const stages = [...grid.querySelectorAll('.mlx-stage')].filter(shown), rows = new Map();
    for (const s of stages) { const near = [...rows.keys()].find((t) => Math.abs(t - box(s.closest('.mlx-figure')).top) < 30); rows.set(near ?? box(s.closest('.mlx-figure')).top, [...(rows.get(near) ?? []), box(s).top]); }
    for (const tops of rows.values()) if (Math.max(...tops) - Math.min(...tops) > 1) found.push(`tops differ by ${(Math.max(...tops) - Math.min(...tops)).toFixed(0)} pixels`);
  }
  if (top) {
    const slider = root.querySelector('.mlx-fields input[type=range], .mlx-strategy'), result = root.querySelector('.mlx-is-returned .mlx-stage');
    if (box(slider).bottom > window.innerHeight) found.push('the slider is below the first screen');
    if (box(result).top + Math.min(60, box(result).height) > window.innerHeight) found.push('the result is below the first screen');
  }
  return [...new Set(found)];
}
