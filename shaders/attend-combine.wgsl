// Joins the splits of one row and head: out = sum of values * exp(maximum - largest) / sum of sums likewise.
// Dispatch [items, HEADS, rows], 64 threads: over the splits for their factors, then over the channels.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> items: array<Item>;
@group(0) @binding(2) var<storage, read> partials: array<f32>;            // as attend.wgsl writes them
@group(0) @binding(3) var<storage, read_write> out: array<f32>;           // [rows, HEADS, HEAD_DIM] of each item; still rotated unless UNROTATED
@group(0) @binding(4) var<storage, read_write> softmax: array<vec2<f32>>; // [item, row, head]: maximum, 1 / sum

const STRIDE = HEAD_DIM + 2u;
var<workgroup> shared_: array<f32, 64>;
var<workgroup> factors: array<f32, 64>;
var<workgroup> x: array<f32, HEAD_DIM>;

fn largestOf(thread: u32, x: f32) -> f32 {
  shared_[thread] = x;
  workgroupBarrier();
  for (var half = 32u; half > 0u; half /= 2u) {
    if (thread < half) { shared_[thread] = max(shared_[thread], shared_[thread + half]); }
    workgroupBarrier();
  }
  let y = shared_[0];
  workgroupBarrier();
  return y;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let item = items[id.x];
  let head = id.y;
  let row = id.z;
  let first = ((item.firstSplit * params.rows + row) * HEADS + head) * STRIDE;
  let step = params.rows * HEADS * STRIDE;
  var largest = NEVER;
  for (var i = thread; i < item.splits; i += 64u) { largest = max(largest, partials[first + i * step]); }
  largest = largestOf(thread, largest);

  // 64 splits at a time; sums run in the splits' order.
  var sum = 0.0;
  var values = array<f32, (HEAD_DIM + 63u) / 64u>();
  for (var from_ = 0u; from_ < item.splits; from_ += 64u) {
    let count = min(64u, item.splits - from_);
    let at = first + from_ * step;
    workgroupBarrier();
    if (thread < count) {
      let factor = exp(partials[at + thread * step] - largest);
      factors[thread] = factor;
      shared_[thread] = partials[at + thread * step + 1u] * factor;
    }
    workgroupBarrier();
    for (var i = 0u; i < count; i++) { sum += shared_[i]; }
    for (var j = 0u; j < (HEAD_DIM + 63u) / 64u; j++) {
      let c = min(thread + j * 64u, HEAD_DIM - 1u);
      for (var i = 0u; i < count; i++) { values[j] += factors[i] * partials[at + i * step + 2u + c]; }
    }
  }
  let inverse = 1.0 / sum;
  for (var j = 0u; j < (HEAD_DIM + 63u) / 64u; j++) {
    let c = thread + j * 64u;
    if (c < HEAD_DIM) { x[c] = values[j] * inverse; }
  }
  if (UNROTATED) {
    workgroupBarrier();
    hadamard(thread);
  }
  for (var c = thread; c < HEAD_DIM; c += 64u) { out[item.out + (row * HEADS + head) * HEAD_DIM + c] = x[c]; }
  if (thread == 0u) { softmax[(id.x * params.rows + row) * HEADS + head] = vec2(largest, inverse); }
}
