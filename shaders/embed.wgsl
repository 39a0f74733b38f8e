// Rows of a table [n, k]: out row r = row ids[r]. Dispatch [rows], 64 threads, each 8 channels at a time.

@group(0) @binding(3) var<storage, read> ids: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  step = steps[0];
  let row = ids[id.x];
  let lane = row & 3u;
  for (var unit = thread; unit < (step.k + 7u) / 8u; unit += 64u) {
    let w = unitAt(step.weight, row / 4u, unit);
    let low = transpose(w.low)[lane] * w.scale[lane] + w.minimum[lane];
    let high = transpose(w.high)[lane] * w.scale[lane] + w.minimum[lane];
    let at = step.out + id.x * step.ldOut + unit * 2u;
    values[at] = low;
    if (unit * 8u + 4u < step.k) { values[at + 1u] = high; }
  }
}
