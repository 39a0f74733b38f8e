// The largest values of rows, best first, equal ones by the lowest id. Twice: over shares of SLICE values of a row, then over what the shares found.
// Each round takes the best of what is left. Dispatch [shares, rows], 256 threads.

struct Take {
  start: u32,     // row 0's values, in floats; or its pairs
  stride: u32,    // from row to row
  count: u32,     // of a row
  most: u32,      // taken of each share
  to: u32,        // row 0's pairs
  toStride: u32,
}

@group(0) @binding(0) var<uniform> take: Take;
@group(0) @binding(1) var<storage, read_write> values: array<f32>;
@group(0) @binding(2) var<storage, read_write> pairs: array<vec2<u32>>; // first: a key that sorts as the value, and its id; then the value's bits and its id

const SLICE = 2048u;
var<workgroup> keys: array<u32, SLICE>;
/// The best of each thread's and of those that it was compared with: key, place.
var<workgroup> best: array<vec2<u32>, 256>;

/// Sorts as the value does, both zeros alike; 0 stands for what was taken.
fn sortable(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  if ((bits << 1u) == 0u) { return 0x80000000u; }
  return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}
fn bitsOf(key: u32) -> u32 { return select(~key, key ^ 0x80000000u, (key >> 31u) == 1u); }

fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  return select(a, b, b.x > a.x || (b.x == a.x && b.y < a.y));
}
fn bestOf(thread: u32) -> vec2<u32> {
  var found = vec2(keys[thread], thread);
  for (var place = thread + 256u; place < SLICE; place += 256u) { found = better(found, vec2(keys[place], place)); }
  return found;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let first = id.x * SLICE;
  let from_ = take.start + id.y * take.stride + first;
  for (var place = thread; place < SLICE; place += 256u) {
    var key = 0u;
    if (first + place < take.count) {
      if (LAST) { key = pairs[from_ + place].x; } else { key = sortable(values[from_ + place]); }
    }
    keys[place] = key;
  }
  var mine = bestOf(thread);
  for (var round_ = 0u; round_ < take.most; round_++) {
    best[thread] = mine;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
      if (thread < half) { best[thread] = better(best[thread], best[thread + half]); }
      workgroupBarrier();
    }
    let winner = best[0];
    if (thread == 0u) {
      let to = take.to + id.y * take.toStride + id.x * take.most + round_;
      if (LAST) { pairs[to] = vec2(bitsOf(winner.x), pairs[from_ + winner.y].y); } else { pairs[to] = vec2(winner.x, first + winner.y); }
    }
    if (winner.y % 256u == thread) {
      keys[winner.y] = 0u;
      mine = bestOf(thread);
    }
    workgroupBarrier();
  }
}
