// out = OPERATION(x, other), element by element. Dispatch [row's vectors / 64, rows].
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  step = steps[0];
  let c = id.x * 64u + thread;
  if (c >= step.k / 4u) { return; }
  let a = values[step.x + id.y * step.ldX + c];
  let b = values[step.other + id.y * step.ldOut + c];
  values[step.out + id.y * step.ldOut + c] = operation(a, b);
}
