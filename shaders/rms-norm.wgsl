// out = x * weight / sqrt(mean(x^2) + epsilon). Dispatch [rows], 64 threads over the channels.

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;
var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  step = steps[0];
  let from_ = step.x + id.x * step.ldX;
  var sum = 0.0;
  for (var c = thread; c < step.k / 4u; c += 64u) {
    let x = values[from_ + c];
    sum += dot(x, x);
  }
  sums[thread] = sum;
  workgroupBarrier();
  // Every thread adds up all 64, in order.
  var total = 0.0;
  for (var i = 0u; i < 64u; i++) { total += sums[i]; }
  let factor = 1.0 / sqrt(total / f32(step.k) + step.epsilon);
  let to = step.out + id.x * step.ldOut;
  for (var c = thread; c < step.k / 4u; c += 64u) { values[to + c] = values[from_ + c] * factor * weights[step.weight + c]; }
}
