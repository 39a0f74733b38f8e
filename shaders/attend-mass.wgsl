// Adds round(p * MASS_ONE) of every row and head to each cell's u32 mass, saturating. One thread a cell, so that no order matters.
// Dispatch [splits, KV_HEADS], 128 threads.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;     // the cache
@group(0) @binding(2) var<storage, read> items: array<Item>;
@group(0) @binding(3) var<storage, read> splits: array<Split>;
@group(0) @binding(4) var<storage, read> segments: array<u32>;
@group(0) @binding(5) var<storage, read> scores: array<f32>;
@group(0) @binding(6) var<storage, read> softmax: array<vec2<f32>>;

fn add(word: u32, item: u32, kvHead: u32, score: u32, firstRow: u32) {
  var sum = 0u;
  for (var row = firstRow; row < params.rows; row++) {
    for (var head = kvHead * GROUP; head < (kvHead + 1u) * GROUP; head++) {
      let x = scores[(row * HEADS + head) * params.scoreStride + score];
      let m = softmax[(item * params.rows + row) * HEADS + head];
      if (x > NEVER) { sum += u32(round(exp(x - m.x) * m.y * MASS_ONE)); }
    }
  }
  let before = words[word];
  words[word] = before + min(sum, 0xffffffffu - before);
}

fn cellsOf(record: u32) -> u32 {
  var cells = 0u;
  for (var tier = 0u; tier < TIER_COUNT; tier++) {
    cells += (((words[record * 4u + tier / 4u] >> ((tier & 3u) * 8u)) & 255u) + 3u) & 0xfffffffcu;
  }
  return cells;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let split = splits[id.x];
  let item = items[split.item];
  let kvHead = id.y;
  if (split.count == 0u) {
    let slot = split.first + thread;
    // Row r sees slot s from r = s + 1 - visible on.
    let firstRow = select(0u, slot + 1u - item.visible, slot >= item.visible);
    let mass = (item.exact + 2u * KV_HEADS * exactHalf(item) + kvHead * ((item.capacity + 3u) / 4u)) * 4u;
    if (firstRow < params.rows) { add(mass + slot, split.item, kvHead, split.scores + thread, firstRow); }
    return;
  }
  for (var i = 0u; i < split.count; i++) {
    let block = segments[split.first + i];
    var mass = block * 4u + words[block * 4u + 2u] / 4u;
    for (var h = 0u; h < kvHead; h++) { mass += cellsOf(block + words[block * 4u + 4u + h] / 16u); }
    let cells = cellsOf(block + words[block * 4u + 4u + kvHead] / 16u);
    for (var cell = thread; cell < cells; cell += 128u) {
      add(mass + cell, split.item, kvHead, split.scores + i * MAX_CELLS + cell, 0u);
    }
  }
}
