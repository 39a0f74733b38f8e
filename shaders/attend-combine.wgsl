// Joins the splits of one row and head: out = sum of values * exp(maximum - largest) / sum of sums likewise.
// Dispatch [items, HEADS, rows], 64 threads over the channels.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> items: array<Item>;
@group(0) @binding(2) var<storage, read> partials: array<f32>;          // as attend.wgsl writes them
@group(0) @binding(3) var<storage, read_write> out: array<f32>;         // [rows, HEADS, HEAD_DIM] of each item; still rotated
@group(0) @binding(4) var<storage, read_write> softmax: array<vec2<f32>>; // [item, row, head]: maximum, 1 / sum

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let item = items[id.x];
  let head = id.y;
  let row = id.z;
  let stride = HEAD_DIM + 2u;
  var largest = NEVER;
  for (var i = 0u; i < item.splits; i++) {
    largest = max(largest, partials[(((item.firstSplit + i) * params.rows + row) * HEADS + head) * stride]);
  }
  var sum = 0.0;
  for (var i = 0u; i < item.splits; i++) {
    let at = (((item.firstSplit + i) * params.rows + row) * HEADS + head) * stride;
    sum += partials[at + 1u] * exp(partials[at] - largest);
  }
  let inverse = 1.0 / sum;
  for (var c = thread; c < HEAD_DIM; c += 64u) {
    var value = 0.0;
    for (var i = 0u; i < item.splits; i++) {
      let at = (((item.firstSplit + i) * params.rows + row) * HEADS + head) * stride;
      value += partials[at + 2u + c] * exp(partials[at] - largest);
    }
    out[item.out + (row * HEADS + head) * HEAD_DIM + c] = value * inverse;
  }
  if (thread == 0u) { softmax[(id.x * params.rows + row) * HEADS + head] = vec2(largest, inverse); }
}
