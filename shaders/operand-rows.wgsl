// The operand of matmul.wgsl: rows as they lie in the workspace.
fn prepare(lane: u32) {}
fn operand(row: u32, c: u32) -> vec4<f32> { return values[step.x + row * step.ldX + c]; }
