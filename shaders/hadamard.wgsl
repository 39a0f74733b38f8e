// The orthonormal Hadamard matrix of HADAMARD channels on each block of `x`, by butterflies; 64 threads, all of them.
fn hadamard(thread: u32) {
  for (var step = 1u; step < HADAMARD; step *= 2u) {
    for (var i = thread; i < HEAD_DIM / 2u; i += 64u) {
      let low = i / step * step * 2u + i % step;
      let a = x[low];
      let b = x[low + step];
      x[low] = a + b;
      x[low + step] = a - b;
    }
    workgroupBarrier();
  }
  for (var c = thread; c < HEAD_DIM; c += 64u) { x[c] *= HADAMARD_NORM; }
  workgroupBarrier();
}
