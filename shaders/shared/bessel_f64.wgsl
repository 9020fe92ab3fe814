// bessel(v, x): the FUNCTION of order v and argument x that the host chose, in f64. Needs math_f64.wgsl, the constants
// LOG_IV .. VMF_LOG_NORMALIZER and FUNCTION. v from 0 to 1e7, x from 1e-15 to 1e9 or 0: nothing overflows there.
// With s = hypot(v, x), t = v / s, t0 = asinh(v / x):
//
//   s >= 34: one Debye expansion (DLMF 10.41.3-4) in 1/s with coefficients in t^2, so that v = 0 is no case apart
//     ln I = s - v t0 - ln(2 pi s)/2 + ln U(1/s)      ln K = v t0 - s + ln(pi / 2s)/2 + ln U(-1/s)
//     (ln I)' = s/x - x/s^2 W/U (1/s)                 (ln K)' = -s/x - x/s^2 W/U (-1/s)
//     d/dv ln I = -t0 - t/s V/U (1/s)                 d/dv ln K = t0 - t/s V/U (-1/s)
//   s < 34: ln I by its power series (DLMF 10.25.2); the ratio by a downward recurrence of what is left of I_{v+1}/I_v
//     beside x / (v + 1/2 + hypot(v + 1/2, x)), and d/dv ln I from it; K by the trapezoid rule on (10.32.9).
//
// Accurate to a few eps where division and sqrt are; to 7 eps (logs, scaled), 13 (ratio, complement, d/dx) where they
// err by 2.5 and 4.5 ulp. d/dv ln I below 34 is accurate to 7 eps max(1, |value|): it nearly cancels for v << x.
// Operations a point, s >= 34: logs 280, ratio, d/dx and d/dv 390; from s = 300 logs 150, the others 125. Below: ln I
// and vMF 200 + 10 a term (at most 47), ratio and (ln I)' 25 + 18 a step (x + 12), d/dv ln I 430 + 25 a step (at most
// 61), K 230 + 140 a node (44, at most 180).

const DEBYE_FROM: f64 = 34.0;
const DEBYE_SHORT: f64 = 0.0033; // 1/s from which more than six terms of the expansion count
const LN_PI: f64 = 1.1447298858494002lf;
const LN_2PI: f64 = 1.8378770664093456lf;
const HALF_LN_2PI: f64 = 0.9189385332046728lf;
const HALF_LN_HALF_PI: f64 = 0.22579135264472744lf;
const INVERSE_2PI: f64 = 0.15915494309189535lf;

fn bessel(v: f64, x: f64) -> f64 {
    if FUNCTION == VMF_LOG_NORMALIZER {
        return vmf_log_normalizer(v, x);
    }
    if x == 0.0 {
        return at_zero(v);
    }
    let s = sqrt(v * v + x * x);
    let debye = s >= DEBYE_FROM;
    if FUNCTION == LOG_IV {
        if debye { return debye_log_iv(v, x, s); }
        return series_log_iv(v, x);
    }
    if FUNCTION == LOG_KV {
        if debye { return debye_log_kv(v, x, s); }
        return integrate_kv(v, x, s).log;
    }
    if FUNCTION == IV_RATIO {
        return ratios(v, x).ratio;
    }
    if FUNCTION == IV_RATIO_COMPLEMENT {
        return ratios(v, x).complement;
    }
    if FUNCTION == LOG_IV_DX {
        if debye { return s / x - debye_dx(1.0 / s, v, x, s); }
        return v / x + recur_ratio(v, x, 0u).ratio;
    }
    if FUNCTION == LOG_KV_DX {
        if debye { return -s / x - debye_dx(-1.0 / s, v, x, s); }
        return integrate_kv(v, x, s).dx;
    }
    if FUNCTION == LOG_IV_DV {
        // -K_0 / I_0 exactly; the expansion would give 0 and the series noise
        if v == 0.0 {
            if debye { return -exp_f64(debye_log_kv(v, x, s) - debye_log_iv(v, x, s)); }
            return -exp_f64(integrate_kv(v, x, s).log - series_log_iv(v, x));
        }
        if debye { return -asinh_ratio(v, x, s) - debye_dv(1.0 / s, v, s); }
        return recur_log_iv_dv(v, x);
    }
    // LOG_KV_DV
    if debye { return asinh_ratio(v, x, s) - debye_dv(-1.0 / s, v, s); }
    return integrate_kv(v, x, s).dv;
}

// The limits as x falls to 0
fn at_zero(v: f64) -> f64 {
    let zero_order = v == 0.0;
    if FUNCTION == LOG_IV { return select(infinity_f64(0x80000000u), 0.0, zero_order); }
    if FUNCTION == LOG_KV { return infinity_f64(0u); }
    if FUNCTION == IV_RATIO { return 0.0; }
    if FUNCTION == IV_RATIO_COMPLEMENT { return 1.0; }
    if FUNCTION == LOG_IV_DX { return select(infinity_f64(0u), 0.0, zero_order); }
    if FUNCTION == LOG_KV_DX || FUNCTION == LOG_IV_DV { return infinity_f64(0x80000000u); }
    return select(infinity_f64(0u), 0.0, zero_order); // LOG_KV_DV
}

// ln C_d(x) = v ln x - (v + 1) ln 2pi - ln I_v(x), v = d/2 - 1, with the terms that cancel left out. At x = 0 it is
// minus the log of the sphere's area.
fn vmf_log_normalizer(v: f64, x: f64) -> f64 {
    let s = sqrt(v * v + x * x);
    if s >= DEBYE_FROM {
        let t = v / s;
        let rest = 0.5 * log_f64(s) - HALF_LN_2PI - log1p_small(debye_u(1.0 / s, t * t));
        return v * log_f64((v + s) * INVERSE_2PI) - s + rest;
    }
    let l = log1p_f64(v);
    return v * (l - (1.0 + LN_PI)) + (0.5 * l + stirling_rest(v) - LN_2PI) - log1p_f64(power_series(v, x));
}

// ---- s >= 34 ----

// asinh(v / x), relative accuracy kept for v << x
fn asinh_ratio(v: f64, x: f64, s: f64) -> f64 {
    return log1p_f64(v / x * (1.0 + v / (x + s)));
}

fn debye_log_iv(v: f64, x: f64, s: f64) -> f64 {
    let t = v / s;
    let rest = 0.5 * log_f64(s) + HALF_LN_2PI - log1p_small(debye_u(1.0 / s, t * t));
    return s - v * asinh_ratio(v, x, s) - rest;
}

fn debye_log_kv(v: f64, x: f64, s: f64) -> f64 {
    let t = v / s;
    let rest = 0.5 * log_f64(s) - HALF_LN_HALF_PI - log1p_small(debye_u(-1.0 / s, t * t));
    return v * asinh_ratio(v, x, s) - s - rest;
}

// x/s^2 W/U at r = 1/s (I) or -1/s (K)
fn debye_dx(r: f64, v: f64, x: f64, s: f64) -> f64 {
    let t = v / s;
    let y = t * t;
    return x / s / s * debye_w(r, y) / (1.0 + debye_u(r, y));
}

// t/s V/U at r = 1/s (I) or -1/s (K)
fn debye_dv(r: f64, v: f64, s: f64) -> f64 {
    let t = v / s;
    let y = t * t;
    return t / s * debye_v(r, y) / (1.0 + debye_u(r, y));
}

// ln(1 + a), |a| < 0.005
fn log1p_small(a: f64) -> f64 {
    return a * (1.0 - a * (0.5 - a * (0.3333333333333333 - a * (0.25
        - a * (0.2 - a * (0.16666666666666666 - a * 0.14285714285714285))))));
}

// sum_{k=1..13} r^k U_k(t) / t^k, y = t^2; six terms where they are enough
fn debye_u(r: f64, y: f64) -> f64 {
    var high = 0.0lf;
    if abs(r) > DEBYE_SHORT {
        let u7 = 1.7277275025844574 + y * (-108.09091978839466 + y * (1200.9029132163525 + y * (-5305.646978613403
            + y * (11655.393336864534 + y * (-13586.550006434138 + y * (8061.722181737309
            + y * -1919.457662318407))))));
        let u8 = 6.074042001273483 + y * (-493.915304773088 + y * (7109.514302489364 + y * (-41192.65496889755
            + y * (122200.46498301746 + y * (-203400.17728041555 + y * (192547.00123253153
            + y * (-96980.59838863752 + y * 20204.29133096615)))))));
        let u9 = 24.380529699556064 + y * (-2499.8304818112097 + y * (45218.76898136273 + y * (-331645.1724845636
            + y * (1268365.2733216248 + y * (-2813563.226586534 + y * (3763271.297656404 + y * (-2998015.9185381066
            + y * (1311763.6146629772 + y * -242919.18790055133))))))));
        let u10 = 110.01714026924674 + y * (-13886.08975371704 + y * (308186.4046126624 + y * (-2785618.1280864547
            + y * (13288767.166421818 + y * (-37567176.66076335 + y * (66344512.27472903 + y * (-74105148.21153265
            + y * (50952602.49266464 + y * (-19706819.118432228 + y * 3284469.853072038)))))))));
        let u11 = 551.3358961220206 + y * (-84005.43360302408 + y * (2243768.1779224495 + y * (-24474062.72573873
            + y * (142062907.7975331 + y * (-495889784.2750303 + y * (1106842816.8230145 + y * (-1621080552.1083372
            + y * (1553596899.57058 + y * (-939462359.6815784 + y * (325573074.18576574
            + y * -49329253.66450996))))))))));
        let u12 = 3038.090510922384 + y * (-549842.3275722887 + y * (17395107.553978164 + y * (-225105661.88941526
            + y * (1559279864.8792574 + y * (-6563293792.619285 + y * (17954213731.1556 + y * (-33026599749.800724
            + y * (41280185579.753975 + y * (-34632043388.158775 + y * (18688207509.295826
            + y * (-5866481492.051847 + y * 814789096.1183121)))))))))));
        let u13 = 18257.755474293175 + y * (-3871833.442572613 + y * (143157876.71888897 + y * (-2167164983.223795
            + y * (17634730606.83497 + y * (-87867072178.02327 + y * (287900649906.1506 + y * (-645364869245.3765
            + y * (1008158106865.3821 + y * (-1098375156081.2233 + y * (819218669548.5773 + y * (-399096175224.4665
            + y * (114498237732.0258 + y * -14679261247.695616))))))))))));
        high = r * (u7 + r * (u8 + r * (u9 + r * (u10 + r * (u11 + r * (u12 + r * u13))))));
    }
    let u1 = 0.125 + y * -0.20833333333333334;
    let u2 = 0.0703125 + y * (-0.4010416666666667 + y * 0.3342013888888889);
    let u3 = 0.0732421875 + y * (-0.8912109375 + y * (1.8464626736111112 + y * -1.0258125964506173));
    let u4 = 0.112152099609375 + y * (-2.3640869140625 + y * (8.78912353515625 + y * (-11.207002616222994
        + y * 4.669584423426247)));
    let u5 = 0.22710800170898438 + y * (-7.368794359479632 + y * (42.53499874538846 + y * (-91.81824154324002
        + y * (84.63621767460073 + y * -28.212072558200244))));
    let u6 = 0.5725014209747314 + y * (-26.491430486951554 + y * (218.1905117442116 + y * (-699.5796273761325
        + y * (1059.9904525279999 + y * (-765.2524681411817 + y * 212.57013003921713)))));
    return r * (u1 + r * (u2 + r * (u3 + r * (u4 + r * (u5 + r * (u6 + high))))));
}

// The same with each power t^e of U_k weighted by 1/2 + e
fn debye_w(r: f64, y: f64) -> f64 {
    var high = 0.0lf;
    if abs(r) > DEBYE_SHORT {
        let w7 = 12.95795626938343 + y * (-1026.8637379897493 + y * (13810.383501988053 + y * (-71626.23421128094
            + y * (180658.59672140027 + y * (-237764.6251125974 + y * (157203.58254387754
            + y * -41268.33973984575))))));
        let w8 = 51.629357010824606 + y * (-5186.110700117424 + y * (88868.92878111705 + y * (-597293.4970490145
            + y * (2016307.6722197882 + y * (-3762903.2796876873 + y * (3947213.5252668965
            + y * (-2182063.463744344 + y * 495005.13760867063)))))));
        let w9 = 231.6150321457826 + y * (-28748.05054082891 + y * (610453.3812483968 + y * (-5140500.173510736
            + y * (22196392.283128433 + y * (-54864482.918437414 + y * (80910332.89961268 + y * (-70453374.08564551
            + y * (33449972.17390592 + y * -6680277.667265162))))))));
        let w10 = 1155.1799728270908 + y * (-173576.121921463 + y * (4468702.866883605 + y * (-45962699.1134265
            + y * (245842192.57880363 + y * (-770127121.5456487 + y * (1492751526.1814032
            + y * (-1815576131.1825502 + y * (1350243966.055613 + y * (-561644344.8753184
            + y * 100176330.51869716)))))))));
        let w11 = 6340.362805403237 + y * (-1134073.3536408253 + y * (34778406.757797964 + y * (-428296097.7004278
            + y * (2770226702.051895 + y * (-10661630361.91315 + y * (26010806195.34084 + y * (-41337554078.762596
            + y * (42723914738.19095 + y * (-27714139610.606564 + y * (10255551836.851622
            + y * -1652529997.7610838))))))))));
        let w12 = 37976.1313865298 + y * (-7972713.749798186 + y * (287019274.6406397 + y * (-4164454744.9541826
            + y * (31965237230.02478 + y * (-147674110333.9339 + y * (439878236413.3122 + y * (-875204893369.7191
            + y * (1176485289022.9883 + y * (-1056277323338.8428 + y * (607366744052.1143
            + y * (-202393611475.78873 + y * 29739802008.318394)))))))))));
        let w13 = 246479.69890295787 + y * (-60013418.35987549 + y * (2505262842.5805573 + y * (-42259717172.864006
            + y * (379146708046.95184 + y * (-2064876196183.5466 + y * (7341466572606.84 + y * (-17747533904247.855
            + y * (29740664152528.773 + y * (-34598817416558.535 + y * (27443825429877.34 + y * (-14167914220468.56
            + y * (4293683914950.968 + y * -579830819283.9768))))))))))));
        high = r * (w7 + r * (w8 + r * (w9 + r * (w10 + r * (w11 + r * (w12 + r * w13))))));
    }
    let w1 = 0.1875 + y * -0.7291666666666666;
    let w2 = 0.17578125 + y * (-1.8046875 + y * 2.1723090277777777);
    let w3 = 0.25634765625 + y * (-4.90166015625 + y * (13.848470052083334 + y * -9.745219666280864));
    let w4 = 0.5046844482421875 + y * (-15.36656494140625 + y * (74.70755004882812 + y * (-117.67352747034144
        + y * 58.36980529282809)));
    let w5 = 1.249094009399414 + y * (-55.26595769609724 + y * (404.0824880811903 + y * (-1055.9097777472603
        + y * (1142.5889386071099 + y * -437.2871246521038))));
    let w6 = 3.7212592363357544 + y * (-225.17715913908822 + y * (2291.0003733142216 + y * (-8744.745342201657
        + y * (15369.861561655998 + y * (-12626.665724329498 + y * 3932.547405725517)))));
    return 0.5 + r * (w1 + r * (w2 + r * (w3 + r * (w4 + r * (w5 + r * (w6 + high))))));
}

// v_k = (1/2 + k) p_k - 2 (1 - y) dp_k/dy for p_k(y) = U_k / t^k
fn debye_v(r: f64, y: f64) -> f64 {
    var high = 0.0lf;
    if abs(r) > DEBYE_SHORT {
        let v7 = 229.13979584617275 + y * (-5830.475390855159 + y * (45644.26537366847 + y * (-164869.3809061972
            + y * (316524.0967857416 + y * (-334505.2912934451 + y * (184075.98981633523 + y * -41268.33973984575))))));
        let v8 = 1039.4599665570006 + y * (-33624.16791007488 + y * (336024.8585945024 + y * (-1574897.216913154
            + y * (4050309.445023943 + y * (-6073467.294478065 + y * (5304941.902707822 + y * (-2505332.1250398024
            + y * 495005.13760867063)))))));
        let v9 = 5231.275995768202 + y * (-209623.12646627982 + y * (2600324.4161557783 + y * (-15287422.360083735
            + y * (50332024.548993774 + y * (-100023738.49031426 + y * (122882555.75914618
            + y * (-91441591.92025314 + y * (37822517.55611584 + y * -6680277.667265162))))))));
        let v10 = 28927.359480261173 + y * (-1406321.7403721125 + y * (21182411.635402333
            + y * (-152272836.44480106 + y * (621513959.1864371 + y * (-1566261268.842397 + y * (2530223601.1428604
            + y * (-2630817771.0651846 + y * (1704966710.1873932 + y * (-627333741.9367592
            + y * 100176330.51869716)))))))));
        let v11 = 174351.2300114514 + y * (-10109146.065330623 + y * (181622783.11223033 + y * (-1564799360.0806925
            + y * (7729124544.802198 + y * (-23943744163.789326 + y * (48705933924.85756 + y * (-66195104471.89188
            + y * (59634237212.459366 + y * (-34225601094.321877 + y * (11340795417.47084
            + y * -1652529997.7610838))))))))));
        let v12 = 1137660.7865311073 + y * (-77553143.96571085 + y * (1637653245.9771314 + y * (-16638693663.988243
            + y * (97598175156.21762 + y * (-363124675107.8011 + y * (902250632910.5223 + y * (-1535687862645.7827
            + y * (1799862070009.8462 + y * (-1430041473524.7593 + y * (736429336877.255 + y * (-221948549782.62823
            + y * 29739802008.318394)))))))))));
        let v13 = 7990146.584048183 + y * (-632644925.2354314 + y * (15508252741.923328 + y * (-183337562027.54376
            + y * (1257817429827.1846 + y * (-5519683995057.354 + y * (16376574742042.111 + y * (-33878063614093.97
            + y * (49511416961990.79 + y * (-50983190807530.08 + y * (36223941284815.6 + y * (-16915871926037.18
            + y * (4675344707391.054 + y * -579830819283.9768))))))))))));
        high = r * (v7 + r * (v8 + r * (v9 + r * (v10 + r * (v11 + r * (v12 + r * v13))))));
    }
    let v1 = 0.6041666666666666 + y * -0.7291666666666666;
    let v2 = 0.9778645833333334 + y * (-3.1414930555555554 + y * 2.1723090277777777);
    let v3 = 2.03876953125 + y * (-12.287510850694444 + y * (20.003345630787038 + y * -9.745219666280864));
    let v4 = 5.232858276367187 + y * (-50.52305908203125 + y * (141.9495657461661 + y * (-155.03020285775142
        + y * 58.36980529282809)));
    let v5 = 15.986682728358678 + y * (-225.40595267765104 + y * (954.9919373406304 + y * (-1732.999519144066
        + y * (1424.7096641891123 + y * -437.2871246521038))));
    let v6 = 56.70412021023886 + y * (-1097.9392061159347 + y * (6488.478137571017 + y * (-17224.668962425654
        + y * (23022.386243067816 + y * (-15177.507284800102 + y * 3932.547405725517)))));
    return 0.5 + r * (v1 + r * (v2 + r * (v3 + r * (v4 + r * (v5 + r * (v6 + high))))));
}

// ---- s < 34: I ----

// sum_{k>=1} q^k / (k! (v+1)..(v+k)), q = x^2/4
fn power_series(v: f64, x: f64) -> f64 {
    let q = 0.25 * x * x;
    var term = 1.0lf;
    var sum = 0.0lf;
    for (var k = 1u; k <= 90u; k++) {
        term *= q / (f64(k) * (v + f64(k)));
        sum += term;
        if term <= 2e-17 * sum { break; }
    }
    return sum;
}

// ln Gamma(1+v) - (v + 1/2) ln(1+v) + v, 0 <= v <= 34: what Stirling's formula leaves, 0 at v = 0
fn stirling_rest(v: f64) -> f64 {
    let w = v / (1.0 + v);
    return w * (-0.07721566490153288 + w * (-0.0047486314774010194 + w * (0.00036610089095444944
        + w * (0.0003760074429283612 + w * (0.0001430079140751546 + w * (3.406569348021991e-5
        + w * (-1.2648797455063752e-6 + w * (-4.6598822390095535e-7 + w * (-4.236650244638435e-5
        + w * (0.00015999875896764747 + w * (-0.0005439563030141248 + w * (0.0013878102755920732
        + w * (-0.0027343142842248622 + w * (0.004140382599427346 + w * (-0.004774427640633531
        + w * (0.0041168345544953305 + w * (-0.0025685010176272976 + w * (0.0010945346172036685
        + w * (-0.0002845335513505345 + w * 3.391700374027154e-5)))))))))))))))))));
}

fn series_log_iv(v: f64, x: f64) -> f64 {
    let z = 1.0 + v;
    // v ln(x/2) - ln Gamma(1+v), with v (ln z - 1) of the second merged into the first: no cancellation near v = 0
    let power = v * (log_f64(0.5 * x / z) + 1.0) - 0.5 * log1p_f64(v) - stirling_rest(v);
    return power + log1p_f64(power_series(v, x));
}

struct Ratio {
    ratio: f64,      // A = I_{v+1} / I_v
    complement: f64, // 1 - A, from positive terms
    log_dv: f64,     // LOG_IV_DV: sum_{j<orders} d/dv ln(I_{v+j+1} / I_{v+j})
}

fn ratios(v: f64, x: f64) -> Ratio {
    let s = sqrt(v * v + x * x);
    if s < DEBYE_FROM {
        return recur_ratio(v, x, 0u);
    }
    let correction = debye_dx(1.0 / s, v, x, s);
    return Ratio(x / (v + s) - correction, v * (1.0 + v / (s + x)) / (s + v) + correction, 0.0);
}

// With a = v + 1/2, sigma = hypot(a, x), b = a + sigma: A = x / (b + d). From x/A_v = 2(v+1) + x A_{v+1},
// d_v = 2(v+1) / (sigma_v + sigma_{v+1}) - x^2 d_{v+1} / (b_{v+1} (b_{v+1} + d_{v+1})); d is small, so its error hardly
// shows. Started at d = a b / (2 sigma^2), its first term, x + 12 orders up: what that lacks has no weight at v.
fn recur_ratio(v: f64, x: f64, orders: u32) -> Ratio {
    let square = x * x;
    var j = orders + u32(x) + 12u;
    var a = v + (f64(j) + 0.5);
    var sigma = sqrt(a * a + square);
    var b = a + sigma;
    var d = 0.5 * (a / sigma) * (b / sigma);
    var ratio = x / (b + d);
    var slope = -1.0 / sigma; // d/dv ln ratio
    var log_dv = 0.0lf;
    while j > 0u {
        j--;
        let above = sigma;
        let tail = square * d / (b * (b + d));
        a = v + (f64(j) + 0.5); // anew from v: a - 1 would keep the rounding of the largest order
        sigma = sqrt(a * a + square);
        b = a + sigma;
        d = (2.0 * a + 1.0) / (sigma + above) - tail;
        if FUNCTION == LOG_IV_DV {
            let ratio_above = ratio;
            ratio = x / (b + d);
            slope = -ratio * (2.0 / x + ratio_above * slope);
            log_dv += select(0.0, slope, j < orders);
        }
    }
    return Ratio(x / (b + d), (a + a * a / (sigma + x) + d) / (b + d), log_dv);
}

// d/dv ln I_v = d/dv ln I_{v+n} less those of the ratios between, n the orders to where the expansion holds
fn recur_log_iv_dv(v: f64, x: f64) -> f64 {
    let orders = u32(max(sqrt(max(DEBYE_FROM * DEBYE_FROM - x * x, 0.0)) - v, 0.0)) + 1u;
    let w = v + f64(orders);
    let s = sqrt(w * w + x * x);
    return -asinh_ratio(w, x, s) - debye_dv(1.0 / s, w, s) - recur_ratio(v, x, orders).log_dv;
}

// ---- s < 34: K ----

struct Kv {
    log: f64,
    dx: f64,
    dv: f64,
}

// K_v(x) = int_0^inf exp(-x cosh t) cosh(v t) dt by the trapezoid rule, which converges exponentially. With t = t0 + u
// the exponent falls from its peak v t0 - s by E(u) = d (cosh u - 1) + v (e^u - 1 - u), d = s - v, all positive. The
// nodes span where E < 38; (ln K)' = -mean of cosh t, d/dv ln K = mean of t tanh(v t).
fn integrate_kv(v: f64, x: f64, s: f64) -> Kv {
    let t0 = asinh_ratio(v, x, s);
    let d = x * (x / (s + v));
    let qd = 38.0 / d;
    let qv = 38.0 / max(v, 1e-18);
    let root = sqrt(2.0 * qv);
    // each bound keeps one of E's two terms, with e^u - 1 - u >= u^2/2 and e^-u - 1 + u >= u^2 / (2 + u)
    let reach = log1p_f64(qd + sqrt(qd) * sqrt(qd + 2.0));
    let high = min(reach, log1p_f64(qv + log1p_f64(qv + root)));
    let low = min(reach, 0.5 * qv + sqrt(0.25 * qv * qv + 2.0 * qv));
    // nodes t = step k, with u taken from the node next to the peak: u near 0 keeps its accuracy where t0 is large
    let step = 0.5 / sqrt(s + 4.0);
    let peak = floor(t0 / step + 0.5);
    let rest = t0 - step * peak;
    let first = u32(max(peak - low / step, 0.0));
    let grown = (s + v) / x; // e^t0
    // each sum in two halves, from the far end, where the terms are small: rounding stays low
    var sum = vec2<f64>();
    var sum_dx = vec2<f64>();
    var sum_dv = vec2<f64>();
    for (var k = u32(peak + high / step) + 2u; k > first;) {
        k--;
        let t = step * f64(k);
        let u = step * (f64(k) - peak) - rest;
        let e = exp_f64(u);
        let inverse = 1.0 / e;
        var weight = exp_f64(-(0.5 * d * (e - 1.0) * ((e - 1.0) * inverse) + v * ((e - 1.0) - u)));
        weight *= select(1.0lf, 0.5lf, k == 0u);
        let mirror = exp_f64(-2.0 * v * t);
        sum = vec2(sum.y, sum.x + weight * (1.0 + mirror));
        if FUNCTION == LOG_KV_DX {
            let twice_cosh = e * grown + inverse / grown;
            sum_dx = vec2(sum_dx.y, sum_dx.x + weight * (1.0 + mirror) * twice_cosh);
        }
        if FUNCTION == LOG_KV_DV {
            // 1 - e^{-2 v t} without cancellation
            let p = 2.0 * v * t;
            let shrunk = select(1.0 - mirror, -expm1_reduced_f64(-min(p, 0.3)), p < 0.3);
            sum_dv = vec2(sum_dv.y, sum_dv.x + weight * t * shrunk);
        }
    }
    let total = sum.x + sum.y;
    let dx = -0.5 * (sum_dx.x + sum_dx.y) / total;
    return Kv(v * t0 - s + log_f64(0.5 * step * total), dx, (sum_dv.x + sum_dv.y) / total);
}

// ---- what bessel.wgsl asks ----

fn order_in_domain(v: f64) -> bool {
    return is_finite_nonnegative_f64(v) && v <= 1e7;
}

fn argument_in_domain(x: f64) -> bool {
    return is_finite_nonnegative_f64(x) && (x == 0.0 || (x >= 1e-15 && x <= 1e9));
}

// 0 for -0
fn magnitude(value: f64) -> f64 {
    return abs(value);
}

fn not_a_number() -> f64 {
    return nan_f64();
}
