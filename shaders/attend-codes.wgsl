// A part of attend-stream.wgsl's `main`: blocks whose values have 1 to 4 bits, first all their keys, then all their values. Leaves each warp's sums in `shared_`,
// its reference and sum of weights in `perWarp`.
  if (firstCoded < count) {
    let blocks = count - firstCoded;
    // each $h
    var e$h = LOWEST;
    var total$h = 0.0;
    // end $h
    {
      // each $h
      // each $p
      let q$h_$p = qInteger[$hu * VECS + pair + $pu].xz;
      // end $p
      let step$h = qStep[$hu];
      // end $h
      let warpFirst = warp * (32u / LANES);
      let limit = stepsOf(blocks - min(blocks, warpFirst), blocks);
      for (var first = 0u; first < limit; first += TEAMS) {
        let block = firstCoded + first + team;
        let d = next;
        let raw0 = next0;
        let raw1 = next1;
        let kWord = nextK;
        let vWord = nextV;
        let nibble = d.x >> 27u;
        next = after;
        after = table[blocksAt + min(block + 2u * TEAMS, lastBlock)];
        let at = firstVector(next.x, pair);
        next0 = cache[at];
        next1 = cache[secondVector(next.x, pair, at)];
        nextK = words[next.z + select(0u, token / 2u, (next.x >> 27u) == 8u)];
        nextV = words[next.z + (next.w & 255u)];

        // each $h
        var x$h: vec4<i32>;
        // end $h
        var factor = 256.0;
        if (nibble <= 4u) {
          // Words of the 4 tokens: channels 0, 1, 4, 5 and 2, 3, 6, 7 of a pair of chunks.
          // each $p
          var a$p: vec4<u32>;
          var b$p: vec4<u32>;
          // end $p
          var offset = 0;
          if (nibble == 4u) {
            // each $p
            {
              let t0 = levels4(raw$p.x);
              let t1 = levels4(raw$p.y);
              let t2 = levels4(raw$p.z);
              let t3 = levels4(raw$p.w);
              a$p = vec4(t0.x, t1.x, t2.x, t3.x);
              b$p = vec4(t0.y, t1.y, t2.y, t3.y);
            }
            // end $p
          } else if (nibble == 3u) {
            // each $p
            {
              let t0 = levels3(threes(raw0.x, raw1.x, pair + $pu));
              let t1 = levels3(threes(raw0.y, raw1.y, pair + $pu));
              let t2 = levels3(threes(raw0.z, raw1.z, pair + $pu));
              let t3 = levels3(threes(raw0.w, raw1.w, pair + $pu));
              a$p = vec4(t0.x, t1.x, t2.x, t3.x);
              b$p = vec4(t0.y, t1.y, t2.y, t3.y);
            }
            // end $p
          } else {
            offset = select(-40, -10, nibble == 2u);
            factor = select(256.0, 1024.0, nibble == 2u);
            // each $p
            {
              var t0: vec2<u32>;
              var t1: vec2<u32>;
              var t2: vec2<u32>;
              var t3: vec2<u32>;
              if (nibble == 2u) {
                let s = raw0 >> vec4(((pair + $pu) & 1u) * 4u);
                t0 = inPairs(two(s.x), two(s.x >> 2u));
                t1 = inPairs(two(s.y), two(s.y >> 2u));
                t2 = inPairs(two(s.z), two(s.z >> 2u));
                t3 = inPairs(two(s.w), two(s.w >> 2u));
              } else {
                let s = raw0 >> vec4(((pair + $pu) & 3u) * 2u);
                t0 = inPairs(one(s.x), one(s.x >> 1u));
                t1 = inPairs(one(s.y), one(s.y >> 1u));
                t2 = inPairs(one(s.z), one(s.z >> 1u));
                t3 = inPairs(one(s.w), one(s.w >> 1u));
              }
              a$p = vec4(t0.x, t1.x, t2.x, t3.x);
              b$p = vec4(t0.y, t1.y, t2.y, t3.y);
            }
            // end $p
          }
          // each $h
          {
            var x = vec4<i32>();
            if (offset != 0) {
              var q = 0;
              // each $p
              q += total(q$h_$p.x) + total(q$h_$p.y);
              // end $p
              x = vec4(offset * q);
            }
            // each $p
            x += dots(a$p, q$h_$p.x);
            x += dots(b$p, q$h_$p.y);
            // end $p
            x$h = x;
          }
          // end $h
        } else {
          factor = 1.0;
          // each $p
          var a$p = raw0;
          var b$p = raw1;
          if ($p == 1) {
            a$p = cache[(d.x & PLACE) + pair * 2u + 2u];
            b$p = cache[(d.x & PLACE) + pair * 2u + 3u];
          }
          {
            let t = (a$p >> vec4(16u)) | (b$p & vec4(0xffff0000u));
            a$p = (a$p & vec4(0xffffu)) | (b$p << vec4(16u));
            b$p = t;
          }
          // end $p
          // each $h
          {
            var high = vec4<i32>();
            var low = vec4<i32>();
            // each $p
            {
              let q = qInteger[$hu * VECS + pair + $pu];
              high += dots(a$p, q.x) + dots(b$p, q.z);
              low += dots(a$p, q.y) + dots(b$p, q.w);
            }
            // end $p
            x$h = high * 256 + low;
          }
          // end $h
        }

        // Sums over the lanes of a block; each lane keeps one token. Then the block's weights, relative to a power of two above the largest of them.
        let record = d.w >> 23u;
        let base = bases[record];
        let code = codeOf(kWord, token);
        let kCoded = select(exp2(scaleLog(code, nibble, base.x)), 0.0, code == 0u);
        let kScale = factor * select(kCoded, halfOf(kWord, token), nibble == 8u);
        let vCode = codeOf(vWord, token);
        let vLog = select(scaleLog(vCode, d.y >> 27u, base.y), -200.0, vCode == 0u);
        let there = block < count && token <= ((d.w >> 21u) & 3u);
        // each $h
        let both$h = select(x$h.xy, x$h.zw, upper) + bitcast<vec2<i32>>(swapU(bitcast<vec2<u32>>(select(x$h.zw, x$h.xy, upper)), lane, LANES / 2u));
        // end $h
        // each $h
        var one$h = select(both$h.x, both$h.y, odd) + swapI(select(both$h.y, both$h.x, odd), lane, LANES / 4u);
        for (var mask = LANES / 8u; mask > 0u; mask /= 2u) { one$h += swapI(one$h, lane, mask); }
        let s$h = select(NEVER, f32(one$h) * (kScale * step$h) + qMean[record * GROUP + $hu], there);
        var top$h = s$h + max(vLog, LEAST_SCALE);
        // end $h
        // each $h
        top$h = max(top$h, swap1(top$h, lane, LANES / 4u));
        // end $h
        // each $h
        top$h = max(max(top$h, swap1(top$h, lane, LANES / 2u)), LOWEST);
        // end $h
        // each $h
        top$h = ceil(top$h);
        let m$h = u32(127.0 * exp2(s$h - top$h + vLog) + 0.5);
        var w$h = select(0u, m$h << (token * 8u), there);
        // end $h
        // each $h
        w$h |= swapWord(w$h, lane, LANES / 4u);
        // end $h
        // each $h
        w$h |= swapWord(w$h, lane, LANES / 2u);
        // end $h
        // each $h
        {
          let most = max(e$h, top$h);
          total$h = total$h * exp2(e$h - most) + select(0.0, exp2(s$h - most), keeps && there);
          e$h = most;
        }
        // end $h
        if (sub == 0u && block < count) {
          let i = first + team;
          var powers = array<u32, 2u * EXPONENTS>();
          // each $h
          shared_[i * GROUP + $hu] = w$h;
          powers[$h] = bitcast<u32>(i32(top$h)) & 0xffffu;
          // end $h
          for (var j = 0u; j < EXPONENTS; j++) { exponents[i * EXPONENTS + j] = powers[2u * j] | (powers[2u * j + 1u] << 16u); }
        }
        if (params.scoreStride > 0u && keeps && block < count) {
          let to = scoreRow + ((d.w >> 8u) & 8191u) + token;
          // each $h
          scoresOut[to + $hu * params.scoreStride] = select(NEVER, s$h * LN_2, there);
          // end $h
        }
      }
    }
    var at = firstVector(place, pair);
    next0 = cache[at];
    next1 = cache[secondVector(place, pair, at)];
    // each $h
    {
      let most = maximumOf(e$h, lane);
      let sum = sumOf(total$h * exp2(e$h - most), lane);
      if (own == 0u) { perWarp[warp * GROUP + $hu] = vec2(most, sum); }
    }
    // end $h
    workgroupBarrier();
    // each $h
    var most$h = LOWEST;
    for (var w = 0u; w < WARPS; w++) { most$h = max(most$h, perWarp[w * GROUP + $hu].x); }
    // each $p
    var sum$h_$p_0 = vec4<i32>();
    var sum$h_$p_1 = vec4<i32>();
    // end $p
    // end $h
    for (var i = team; i < blocks; i += TEAMS) {
      let vNibble = place >> 27u;
      let value0 = next0;
      let value1 = next1;
      place = placeAfter;
      placeAfter = table[blocksAt + min(firstCoded + i + 2u * TEAMS, lastBlock)].y;
      at = firstVector(place, pair);
      next0 = cache[at];
      next1 = cache[secondVector(place, pair, at)];
      // each $h
      var w$h = shared_[i * GROUP + $hu];
      var fit$h: u32;
      {
        let word = exponents[i * EXPONENTS + $hu / 2u];
        let power = f32(bitcast<i32>(word << (16u - ($hu & 1u) * 16u)) >> 16u);
        let below = u32(most$h - power);
        fit$h = 8u - min(below, 8u);
        // Weights below 2^-8 lose bits.
        if (below > 8u) {
          let k = min(below - 8u, 8u);
          w$h = ((w$h + 0x01010101u * ((1u << k) >> 1u)) >> k) & (0x01010101u * (127u >> min(k, 7u)));
          if (k == 8u) { w$h = 0u; }
        }
      }
      // end $h
      // each $p
      var c$p_0: vec4<u32>;
      var c$p_1: vec4<u32>;
      // end $p
      // Of 2 bits, even chunks come as a quarter.
      var offset = 0;
      var lift = 0u;
      if (vNibble >= 3u) {
        // each $p
        {
          var t0: vec2<u32>;
          var t1: vec2<u32>;
          var t2: vec2<u32>;
          var t3: vec2<u32>;
          if (vNibble == 4u) {
            t0 = levels4(value$p.x);
            t1 = levels4(value$p.y);
            t2 = levels4(value$p.z);
            t3 = levels4(value$p.w);
          } else {
            t0 = levels3(threes(value0.x, value1.x, pair + $pu));
            t1 = levels3(threes(value0.y, value1.y, pair + $pu));
            t2 = levels3(threes(value0.z, value1.z, pair + $pu));
            t3 = levels3(threes(value0.w, value1.w, pair + $pu));
          }
          let r0 = inPairs(t0.x, t0.y);
          let r1 = inPairs(t1.x, t1.y);
          let r2 = inPairs(t2.x, t2.y);
          let r3 = inPairs(t3.x, t3.y);
          c$p_0 = vec4(r0.x, r1.x, r2.x, r3.x);
          c$p_1 = vec4(r0.y, r1.y, r2.y, r3.y);
        }
        // end $p
      } else if (vNibble == 2u) {
        offset = -10;
        lift = 2u;
        // each $p
        {
          let s = value0 >> vec4(((pair + $pu) & 1u) * 4u);
          c$p_0 = vec4(two(s.x), two(s.y), two(s.z), two(s.w));
          c$p_1 = vec4(twoFold(s.x), twoFold(s.y), twoFold(s.z), twoFold(s.w));
        }
        // end $p
      } else {
        offset = -40;
        // each $p
        {
          let s = value0 >> vec4(((pair + $pu) & 3u) * 2u);
          c$p_0 = vec4(one(s.x), one(s.y), one(s.z), one(s.w));
          c$p_1 = vec4(one(s.x >> 1u), one(s.y >> 1u), one(s.z >> 1u), one(s.w >> 1u));
        }
        // end $p
      }
      // each $h
      {
        let even = 1 << (fit$h + lift);
        let times = 1 << fit$h;
        var bias = 0;
        if (offset != 0) { bias = offset * total(w$h); }
        let oddBias = vec4(bias << lift);
        // each $p
        sum$h_$p_0 += even * (vec4(bias) + dots(c$p_0, w$h));
        sum$h_$p_1 += times * (oddBias + dots(c$p_1, w$h));
        // end $p
      }
      // end $h
    }

    // Over the teams of a warp: a lane keeps half of its chunks, then half of these. The weights are no longer needed.
    let above = (own & 16u) != 0u;
    let right = (own & 8u) != 0u;
    let chunk = select(0u, 2u, above) + select(0u, 1u, right);
    workgroupBarrier();
    // each $h
    {
      var out = array<vec4<f32>, 4>();
      // each $p
      out[$p * 2] = vec4<f32>(sum$h_$p_0) * (1.0 / UNIT);
      out[$p * 2 + 1] = vec4<f32>(sum$h_$p_1) * (1.0 / UNIT);
      // end $p
      let x = select(out[0], out[2], above) + swap4(select(out[2], out[0], above), lane, 16u);
      let y = select(out[1], out[3], above) + swap4(select(out[3], out[1], above), lane, 16u);
      var z = select(x, y, right) + swap4(select(y, x, right), lane, 8u);
      if (LANES <= 4u) { z += swap4(z, lane, 4u); }
      if ((own & 7u) < LANES) {
        let to = (warp * GROUP + $hu) * HEAD_DIM + (pair * 2u + chunk) * 4u;
        for (var c = 0u; c < 4u; c++) { shared_[to + c] = bitcast<u32>(z[c]); }
      }
      // The warp's sum is relative to its own reference, its values are relative to that of all.
      if (own == 0u) {
        let part = perWarp[warp * GROUP + $hu];
        perWarp[warp * GROUP + $hu] = vec2(most$h, part.y * exp2(part.x - most$h));
      }
    }
    // end $h
    workgroupBarrier();
  }
