// Adds round(p * massUnit + dither) of every row and head to each cell's u16 mass, saturating; dither of the query as layout and kernels say. A negative
// massUnit: a cell keeps the largest round(p * -massUnit) instead, without dither.
// One thread a pair of cells, so that no order matters. Dispatch [splits, KV_HEADS, most segments of a split], 128 threads.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;     // the cache
@group(0) @binding(2) var<storage, read> items: array<Item>;
@group(0) @binding(3) var<storage, read> splits: array<Split>;
@group(0) @binding(4) var<storage, read> segments: array<u32>;
@group(0) @binding(5) var<storage, read> scores: array<f32>;
@group(0) @binding(6) var<storage, read> softmax: array<vec2<f32>>;

fn massOf(item: u32, kvHead: u32, score: u32, firstRow: u32) -> u32 {
  var sum = 0u;
  for (var row = firstRow; row < params.rows; row++) {
    for (var head = kvHead * GROUP; head < (kvHead + 1u) * GROUP; head++) {
      let x = scores[(row * HEADS + head) * params.scoreStride + score];
      let m = softmax[(item * params.rows + row) * HEADS + head];
      let index = (items[item].position + row) * HEADS + head;
      let dither = f32(bitcast<i32>(index * 0x9e3779b9u)) * 2.3283064365386963e-10;
      let p = exp(x - m.x) * m.y;
      if (x > NEVER) {
        if (params.massUnit > 0.0) { sum += u32(round(p * params.massUnit + dither)); } else { sum = max(sum, u32(round(p * -params.massUnit))); }
      }
    }
  }
  return sum;
}
fn add(word: u32, first: u32, second: u32) {
  let before = words[word];
  let held = vec2(before & 0xffffu, before >> 16u);
  let more = vec2(first, second);
  let after = select(max(held, more), min(held + more, vec2(0xffffu)), params.massUnit > 0.0);
  words[word] = after.x | (after.y << 16u);
}

/// Padded cells of a kvHead's record; 0 without one.
fn cellsOf(block: u32, kvHead: u32) -> u32 {
  let offset = words[block * 4u + 3u + kvHead];
  if (offset == 0u) { return 0u; }
  let record = block * 4u + offset / 4u;
  let kinds = countOneBits(words[record] & 0xffffu);
  var cells = 0u;
  for (var i = 0u; i < kinds; i++) { cells += pad4((words[record + 2u + i / 4u] >> ((i & 3u) * 8u)) & 255u); }
  return cells;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let split = splits[id.x];
  let item = items[split.item];
  let kvHead = id.y;
  // A workgroup a segment; a piece of the exact part counts as one.
  if (id.z >= max(split.count, 1u)) { return; }
  if (split.count == 0u) {
    // Sinks with queries of their own: the rest of their piece has them, too.
    if (thread >= 64u || split.to < SEGMENT_TOKENS) { return; }
    // Row r sees slot s from r = s + 1 - visible on.
    let slot = split.first + thread * 2u;
    let rows = vec2(
      select(0u, slot + 1u - item.visible, slot >= item.visible),
      select(0u, slot + 2u - item.visible, slot + 1u >= item.visible));
    let mass = (item.exact + 2u * KV_HEADS * exactHalf(item)) * 4u + kvHead * pad4(item.capacity) / 2u;
    if (rows.x < params.rows) {
      add(mass + slot / 2u,
        massOf(split.item, kvHead, split.scores + thread * 2u, rows.x),
        massOf(split.item, kvHead, split.scores + thread * 2u + 1u, rows.y));
    }
    return;
  }
  let block = segments[split.first + id.z];
  var mass = block * 4u + words[block * 4u + 2u] / 4u;
  for (var h = 0u; h < kvHead; h++) { mass += cellsOf(block, h) / 2u; }
  let pairs = cellsOf(block, kvHead) / 2u;
  for (var pair = thread; pair < pairs; pair += 128u) {
    let score = split.scores + id.z * MAX_CELLS + pair * 2u;
    add(mass + pair, massOf(split.item, kvHead, score, 0u), massOf(split.item, kvHead, score + 1u, 0u));
  }
}
