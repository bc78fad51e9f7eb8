#!/usr/bin/env python3
"""Checks the formulas of docs/math/ in float64: every derived backward against PyTorch's automatic
differentiation, and the chunk-parallel WKV-7 against the recurrence. Needs PyTorch 1.13 or newer (Debian:
python3-torch). Each check names the page it belongs to; the variables are named as there (gradients: dx).

    tools/verify_math.py
"""
import math

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.manual_seed(7)
failures = []
C_DECAY = math.exp(-0.5)


def rand(*shape, scale=1.0):
    return (torch.randn(*shape) * scale).requires_grad_()


def compare(page, what, pairs, tolerance=1e-10):
    """pairs: (name, derived, expected). The bound is on the largest difference over the largest value."""
    worst = 0.0
    for name, derived, expected in pairs:
        error = ((derived - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()
        worst = max(worst, error)
        if not error <= tolerance:
            failures.append(f'{page}: {what}: {name} differs by {error:.1e}')
    print(f'{page:22} {what:46} {worst:.1e}')


def autograd(y, dy, *inputs):
    return torch.autograd.grad(y, inputs, dy, allow_unused=False)


# ---------------------------------------------------------------- norms.md

def normalize_backward(dxhat, xhat, s):
    """Over the last dimension: x -> xhat = (x - mean) s."""
    return s * (dxhat - dxhat.mean(-1, keepdim=True) - xhat * (dxhat * xhat).mean(-1, keepdim=True))


def check_norms():
    for page_name, groups, eps in (('layer norm', 1, 1e-5), ('group norm', 3, 64e-5)):
        x, gain, bias, dy = rand(5, 192), rand(192), rand(192), torch.randn(5, 192)
        y = F.group_norm(x, groups, gain, bias, eps)
        g = x.detach().view(5, groups, -1)
        s = 1 / torch.sqrt(g.var(-1, unbiased=False, keepdim=True) + eps)
        xhat = (g - g.mean(-1, keepdim=True)) * s
        dx = normalize_backward((dy * gain.detach()).view_as(g), xhat, s).view(5, -1)
        expected = autograd(y, dy, x, gain, bias)
        compare('norms.md', page_name, [('dx', dx, expected[0]),
                                        ('dgain', (dy * xhat.view(5, -1)).sum(0), expected[1]),
                                        ('dbias', dy.sum(0), expected[2])])
    z, dkappa = rand(5, 64), torch.randn(5, 64)
    kappa = F.normalize(z, dim=-1)
    dz = l2_backward(dkappa, kappa.detach(), z.detach().norm(dim=-1, keepdim=True))
    compare('norms.md', 'L2 normalisation', [('dz', dz, autograd(kappa, dkappa, z)[0])])


def l2_backward(dkappa, kappa, norm):
    return (dkappa - kappa * (kappa * dkappa).sum(-1, keepdim=True)) / norm


# ---------------------------------------------------------------- wkv7.md

def wkv7(r, w, k, v, a, b, S):
    """One head. r .. b (T,N), S (N,N): values in rows, keys in columns."""
    ys, states = [], [S]
    for t in range(r.shape[0]):
        S = S * w[t] + torch.outer(S @ a[t], b[t]) + torch.outer(v[t], k[t])
        ys.append(S @ r[t])
        states.append(S)
    return torch.stack(ys), S, states


def wkv7_backward(r, w, k, v, a, b, states, dy, dS):
    d = {n: torch.zeros_like(r) for n in 'rwkvab'}
    for t in reversed(range(r.shape[0])):
        before, S = states[t], states[t + 1]
        d['r'][t] = S.T @ dy[t]
        G = dS + torch.outer(dy[t], r[t])
        u, e = before @ a[t], G @ b[t]
        d['w'][t] = (G * before).sum(0)
        d['a'][t] = before.T @ e
        d['b'][t] = G.T @ u
        d['v'][t] = G @ k[t]
        d['k'][t] = G.T @ v[t]
        dS = G * w[t] + torch.outer(e, a[t])
    return d, dS


def triangles(r):
    ones = torch.ones(len(r), len(r), dtype=r.dtype)
    return ones.tril(-1), ones.tril()


def chunk_terms(r, w, k, v, a, b):
    """What the chunk-parallel form needs besides S: decays relative to the middle of the chunk."""
    g = torch.log(w).cumsum(0)
    ge = g - torch.log(w)
    middle = g[len(g) // 2]
    row, row_a, column = torch.exp(g - middle), torch.exp(ge - middle), torch.exp(middle - g)
    strict, lower = triangles(r)
    A_ab = (a * row_a) @ (b * column).T * strict
    A_ak = (a * row_a) @ (k * column).T * strict
    A_rb = (r * row) @ (b * column).T * lower
    A_rk = (r * row) @ (k * column).T * lower
    inverse = torch.linalg.inv(torch.eye(len(r), dtype=r.dtype) - A_ab)
    return g, ge, A_ak, A_rb, A_rk, inverse


def wkv7_chunk(r, w, k, v, a, b, S):
    g, ge, A_ak, A_rb, A_rk, inverse = chunk_terms(r, w, k, v, a, b)
    U = inverse @ (A_ak @ v + (a * torch.exp(ge)) @ S.T)
    y = A_rk @ v + A_rb @ U + (r * torch.exp(g)) @ S.T
    tail = torch.exp(g[-1] - g)
    return y, S * torch.exp(g[-1]) + v.T @ (k * tail) + U.T @ (b * tail), U


def wkv7_chunk_backward(r, w, k, v, a, b, S, dy, dS_end):
    g, ge, A_ak, A_rb, A_rk, inverse = chunk_terms(r, w, k, v, a, b)
    _, S_end, U = wkv7_chunk(r, w, k, v, a, b, S)
    tail = torch.exp(g[-1] - g)
    strict, lower = triangles(r)
    dU = A_rb.T @ dy + (b * tail) @ dS_end.T
    Z = inverse.T @ dU
    dA_ab, dA_ak = Z @ U.T * strict, Z @ v.T * strict
    dA_rb, dA_rk = dy @ U.T * lower, dy @ v.T * lower
    d = {'v': A_ak.T @ Z + A_rk.T @ dy + (k * tail) @ dS_end.T}
    middle = g[len(g) // 2]
    row, row_a, column = torch.exp(g - middle), torch.exp(ge - middle), torch.exp(middle - g)
    d['a'] = row_a * (dA_ab @ (b * column) + dA_ak @ (k * column)) + torch.exp(ge) * (Z @ S)
    d['r'] = row * (dA_rb @ (b * column) + dA_rk @ (k * column)) + torch.exp(g) * (dy @ S)
    d['b'] = column * (dA_ab.T @ (a * row_a) + dA_rb.T @ (r * row)) + tail * (U @ dS_end)
    d['k'] = column * (dA_ak.T @ (a * row_a) + dA_rk.T @ (r * row)) + tail * (v @ dS_end)
    dg = r * d['r'] - k * d['k'] - b * d['b']
    dg[:-1] += (a * d['a'])[1:]
    dg[-1] += (S_end * dS_end).sum(0)
    d['w'] = dg.flip(0).cumsum(0).flip(0) / w
    return d, dS_end * torch.exp(g[-1]) + dy.T @ (r * torch.exp(g)) + Z.T @ (a * torch.exp(ge))


def wkv7_operands(T, N):
    kappa, rate = F.normalize(torch.randn(T, N), dim=-1), torch.sigmoid(torch.randn(T, N))
    w = torch.exp(-C_DECAY * torch.sigmoid(torch.randn(T, N)))
    values = [torch.randn(T, N), w, torch.randn(T, N), torch.randn(T, N), -kappa, kappa * rate]
    return [x.detach().requires_grad_() for x in values]


def check_wkv7():
    for T in (1, 2, 64):
        inputs, S = wkv7_operands(T, 64), rand(64, 64)
        y, S_end, states = wkv7(*inputs, S)
        dy, dS_end = torch.randn(T, 64), torch.randn(64, 64)
        expected = torch.autograd.grad((y, S_end), (*inputs, S), (dy, dS_end))
        plain = [x.detach() for x in inputs]
        d, dS = wkv7_backward(*plain, [s.detach() for s in states], dy, dS_end)
        compare('wkv7.md', f'recurrence backward, T = {T}',
                [(n, d[n], e) for n, e in zip('rwkvab', expected)] + [('S', dS, expected[6])])
        chunk_y, chunk_S, _ = wkv7_chunk(*plain, S.detach())
        compare('wkv7.md', f'chunk-parallel forward, L = {T}', [('y', chunk_y, y), ('S', chunk_S, S_end)], 1e-9)
        d, dS = wkv7_chunk_backward(*plain, S.detach(), dy, dS_end)
        compare('wkv7.md', f'chunk-parallel backward, L = {T}',
                [(n, d[n], e) for n, e in zip('rwkvab', expected)] + [('S', dS, expected[6])], 1e-8)


def check_wkv7_float32():
    """float32 against float64 where it is hardest, at the fastest decay; and how well a step can be undone."""
    operands = [x.detach() for x in wkv7_operands(64, 64)]
    operands[1] = torch.full_like(operands[1], math.exp(-C_DECAY))
    S = torch.randn(64, 64)
    y, S_end, states = wkv7(*operands, S)
    single = [x.float() for x in operands]
    for name, run in (('one by one', wkv7), ('chunk of 64', wkv7_chunk)):
        y32, S32, _ = run(*single, S.float())
        compare('wkv7.md', f'float32, fastest decay, {name}', [('y', y32, y), ('S', S32, S_end)], 1e-5)
    for steps in (16, 32):
        back = states[steps].float()
        for t in reversed(range(steps)):
            r, w, k, v, a, b = [x[t] for x in single]
            u = (states[t] @ operands[4][t]).float()            # kept by the forward pass
            back = (back - torch.outer(u, b) - torch.outer(v, k)) / w
        error = (back - S).abs().max() / S.abs().max()
        print(f'{"wkv7.md":22} {f"float32, fastest decay, {steps} steps undone":46} {error.item():.1e}')


# ---------------------------------------------------------------- time_mix.md

def shift(x):
    return F.pad(x, (0, 0, 1, -1))


def shift_mix_backward(dx_mixed, mu, x):
    """x (T,C), mu and dx_mixed: lists of (C) and (T,C)."""
    dx = torch.zeros_like(x)
    for d, m in zip(dx_mixed, mu):
        dx += d * (1 - m)
        dx[:-1] += (d * m)[1:]
    return dx, [(d * (shift(x) - x)).sum(0) for d in dx_mixed]


LOW_RANK = {'w': torch.tanh, 'a': lambda u: u, 'v': lambda u: u, 'g': torch.sigmoid}


def time_mix(p, x, v_first, first):
    T, C = x.shape
    xx = shift(x) - x
    m = {c: x + xx * p['mu_' + c] for c in 'rwkvag'}
    r, k, v0 = m['r'] @ p['W_r'].T, m['k'] @ p['W_k'].T, m['v'] @ p['W_v'].T
    low = lambda c: LOW_RANK[c](m[c] @ p[c + '1']) @ p[c + '2']
    w = torch.exp(-C_DECAY * torch.sigmoid(p['w0'] + low('w')))
    eta = torch.sigmoid(p['a0'] + low('a'))
    g = low('g')
    v = v0 if first else v0 + (v_first - v0) * torch.sigmoid(p['v0'] + low('v'))
    heads = lambda z: z.view(T, C // 64, 64)
    kappa = F.normalize(heads(k * p['k_k']), dim=-1).view(T, C)
    kt = k * (1 + (eta - 1) * p['k_a'])
    ys = []
    for h in range(C // 64):
        sl = slice(64 * h, 64 * h + 64)
        ys.append(wkv7(*[z[:, sl] for z in (r, w, kt, v, -kappa, kappa * eta)], torch.zeros(64, 64))[0])
    n = F.group_norm(torch.cat(ys, -1), C // 64, p['gain'], p['bias'], 64e-5)
    beta = (heads(r) * heads(kt) * heads(p['r_k'].expand(T, C))).sum(-1, keepdim=True)
    z = (n + (beta * heads(v)).reshape(T, C)) * g
    return z @ p['W_o'].T, v


def time_mix_backward(p, x, v_first, first, do, dv_first_in):
    """dv_first_in: what all later blocks sent to v_first, for the first block. Returns dx, dv_first, weights."""
    T, C = x.shape
    H = C // 64
    heads = lambda q: q.reshape(T, H, 64)
    flat = lambda q: q.reshape(T, C)
    d = {}
    # forward, keeping what backward needs
    xx = shift(x) - x
    m = {c: x + xx * p['mu_' + c] for c in 'rwkvag'}
    r, k, v0 = m['r'] @ p['W_r'].T, m['k'] @ p['W_k'].T, m['v'] @ p['W_v'].T
    h = {c: LOW_RANK[c](m[c] @ p[c + '1']) for c in ('wag' if first else 'wavg')}
    low = {c: h[c] @ p[c + '2'] for c in h}
    s = torch.sigmoid(p['w0'] + low['w'])
    w, eta, g = torch.exp(-C_DECAY * s), torch.sigmoid(p['a0'] + low['a']), low['g']
    nu = None if first else torch.sigmoid(p['v0'] + low['v'])
    v = v0 if first else v0 + (v_first - v0) * nu
    norm = heads(k * p['k_k']).norm(dim=-1, keepdim=True)
    kappa = flat(heads(k * p['k_k']) / norm)
    kt = k * (1 + (eta - 1) * p['k_a'])
    a, b = -kappa, kappa * eta
    runs = []
    for i in range(H):
        sl = slice(64 * i, 64 * i + 64)
        runs.append(wkv7(*[q[:, sl] for q in (r, w, kt, v, a, b)], torch.zeros(64, 64)))
    y = torch.cat([run[0] for run in runs], -1)
    sg = 1 / torch.sqrt(heads(y).var(-1, unbiased=False, keepdim=True) + 64e-5)
    yhat = (heads(y) - heads(y).mean(-1, keepdim=True)) * sg
    n = flat(yhat) * p['gain'] + p['bias']
    beta = (heads(r) * heads(kt) * heads(p['r_k'].expand(T, C))).sum(-1, keepdim=True)
    q = n + flat(beta * heads(v))
    # output, gate, bonus, group norm
    dz = do @ p['W_o']
    d['W_o'] = do.T @ (q * g)
    dg, dn = dz * q, dz * g
    dbeta = (heads(dn) * heads(v)).sum(-1, keepdim=True)
    dv = flat(beta * heads(dn))
    dr = flat(dbeta * heads(kt)) * p['r_k']
    dkt = flat(dbeta * heads(r)) * p['r_k']
    d['r_k'] = flat(dbeta * heads(r) * heads(kt)).sum(0)
    d['gain'], d['bias'] = (dn * flat(yhat)).sum(0), dn.sum(0)
    dy = flat(normalize_backward(heads(dn * p['gain']), yhat, sg))
    # recurrence
    parts = {c: [] for c in 'rwkvab'}
    for i, run in enumerate(runs):
        sl = slice(64 * i, 64 * i + 64)
        operands = [z[:, sl] for z in (r, w, kt, v, a, b)]
        grads, _ = wkv7_backward(*operands, run[2], dy[:, sl], torch.zeros(64, 64))
        for c in parts:
            parts[c].append(grads[c])
    D = {c: torch.cat(parts[c], -1) for c in parts}
    dr, dkt, dv = dr + D['r'], dkt + D['k'], dv + D['v']
    # operands
    dkappa = D['b'] * eta - D['a']
    deta = D['b'] * kappa + dkt * k * p['k_a']
    d['k_a'] = (dkt * k * (eta - 1)).sum(0)
    dzk = flat(l2_backward(heads(dkappa), heads(kappa), norm))
    dk = dkt * (1 + (eta - 1) * p['k_a']) + dzk * p['k_k']
    d['k_k'] = (dzk * k).sum(0)
    dlow = {'g': dg, 'a': deta * eta * (1 - eta), 'w': D['w'] * w * -C_DECAY * s * (1 - s)}
    d['a0'], d['w0'] = dlow['a'].sum(0), dlow['w'].sum(0)
    if first:
        dv0, dv_first = dv + dv_first_in, None
    else:
        dv0, dv_first = dv * (1 - nu), dv * nu
        dlow['v'] = dv * (v_first - v0) * nu * (1 - nu)
        d['v0'] = dlow['v'].sum(0)
    # projections, low-rank maps
    dm = {'r': dr @ p['W_r'], 'k': dk @ p['W_k'], 'v': dv0 @ p['W_v'], 'w': 0, 'a': 0, 'g': 0}
    d['W_r'], d['W_k'], d['W_v'] = dr.T @ m['r'], dk.T @ m['k'], dv0.T @ m['v']
    slope = {'w': lambda t: 1 - t * t, 'a': torch.ones_like, 'v': torch.ones_like, 'g': lambda t: t * (1 - t)}
    for c in h:
        d[c + '2'] = h[c].T @ dlow[c]
        du = (dlow[c] @ p[c + '2'].T) * slope[c](h[c])
        d[c + '1'] = m[c].T @ du
        dm[c] = dm[c] + du @ p[c + '1'].T
    dx, dmu = shift_mix_backward([dm[c] for c in 'rwkvag'], [p['mu_' + c] for c in 'rwkvag'], x)
    for c, value in zip('rwkvag', dmu):
        d['mu_' + c] = value
    return dx, dv_first, d


def check_time_mix():
    T, C, ranks = 9, 128, {'w': 8, 'a': 12, 'v': 4, 'g': 20}
    for first in (True, False):
        p = {'mu_' + c: torch.rand(C).requires_grad_() for c in 'rwkvag'}
        for c in 'rkvo':
            p['W_' + c] = rand(C, C, scale=C ** -0.5)
        for c in 'wag' if first else 'wavg':
            p[c + '1'], p[c + '2'] = rand(C, ranks[c], scale=C ** -0.5), rand(ranks[c], C, scale=ranks[c] ** -0.5)
            if c != 'g':
                p[c + '0'] = rand(C, scale=0.5)
        for c in ('k_k', 'k_a', 'r_k', 'gain', 'bias'):
            p[c] = rand(C)
        x, v_first, do, dvf = rand(T, C), rand(T, C), torch.randn(T, C), torch.randn(T, C)
        o, v = time_mix(p, x, v_first, first)
        names = list(p)
        inputs = [x] + [p[n] for n in names] + ([] if first else [v_first])
        expected = torch.autograd.grad((o, v) if first else o, inputs, (do, dvf) if first else do)
        plain = {n: t.detach() for n, t in p.items()}
        dx, dv_first, d = time_mix_backward(plain, x.detach(), v_first.detach(), first, do, dvf)
        pairs = [('x', dx, expected[0])] + [(n, d[n], e) for n, e in zip(names, expected[1:])]
        if not first:
            pairs.append(('v_first', dv_first, expected[-1]))
        compare('time_mix.md', 'backward, ' + ('first block' if first else 'later blocks'), pairs)


# ---------------------------------------------------------------- channel_mix.md

def check_channel_mix():
    T, C = 7, 64
    x, mu, W_k, W_v, dy = rand(T, C), rand(C), rand(4 * C, C), rand(C, 4 * C), torch.randn(T, C)
    m = x + (shift(x) - x) * mu
    y = torch.relu(m @ W_k.T) ** 2 @ W_v.T
    expected = autograd(y, dy, x, mu, W_k, W_v)
    X, M, K, V = x.detach(), m.detach(), W_k.detach(), W_v.detach()
    h = torch.relu(M @ K.T) ** 2
    du = 2 * h.sqrt() * (dy @ V)            # h alone is kept
    dx, (dmu,) = shift_mix_backward([du @ K], [mu.detach()], X)
    compare('channel_mix.md', 'backward', [('x', dx, expected[0]), ('mu', dmu, expected[1]),
                                           ('W_k', du.T @ M, expected[2]), ('W_v', dy.T @ h, expected[3])])


# ---------------------------------------------------------------- sparse_attention.md

def visible(q, k, B, top_k):
    """(T,T) bool for one head."""
    T = len(q)
    own = torch.arange(T) // B
    sees = torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        c = int(own[t])
        gates = [(-(q[t] @ k[j * B:(j + 1) * B].mean(0)).item(), j) for j in range(c)]
        for j in [j for _, j in sorted(gates)[:top_k - 1]] + [c]:
            sees[t, j * B:(j + 1) * B] = True
    return sees & torch.ones(T, T, dtype=torch.bool).tril()


def check_sparse_attention():
    T, N, B, top_k = 37, 64, 8, 3
    q, k, v, dy = rand(T, N), rand(T, N), rand(T, N), torch.randn(T, N)
    sees = visible(q.detach(), k.detach(), B, top_k)
    y = (q @ k.T / math.sqrt(N)).masked_fill(~sees, -math.inf).softmax(-1) @ v
    expected = autograd(y, dy, q, k, v)
    Q, K, V = q.detach(), k.detach(), v.detach()
    s = (Q @ K.T / math.sqrt(N)).masked_fill(~sees, -math.inf)
    lse = s.logsumexp(-1, keepdim=True)
    P = torch.exp(s - lse)
    D = (dy * (P @ V)).sum(-1, keepdim=True)
    ds = P * (dy @ V.T - D)
    compare('sparse_attention.md', 'attention backward',
            [('q', ds @ K / math.sqrt(N), expected[0]), ('k', ds.T @ Q / math.sqrt(N), expected[1]),
             ('v', P.T @ dy, expected[2])])

    # merging two parts of the keys by their log-sum-exp
    half = torch.arange(T) < 8
    parts = []
    for mask in (sees & half, sees & ~half):
        sp = s.masked_fill(~mask, -math.inf)
        l = sp.logsumexp(-1, keepdim=True)
        parts.append((l, torch.nan_to_num(torch.exp(sp - l)) @ V))
    l = torch.logaddexp(parts[0][0], parts[1][0])
    merged = sum(torch.exp(li - l) * yi for li, yi in parts)
    compare('sparse_attention.md', 'merging parts by log-sum-exp', [('y', merged, y.detach())])

    # selection loss at one query
    t, weight = T - 1, 0.3
    c = t // B
    means = torch.stack([k[j * B:(j + 1) * B].mean(0) for j in range(c)])
    full = (Q[t] @ K[:t + 1].T / math.sqrt(N)).softmax(-1)
    mass = torch.stack([full[j * B:(j + 1) * B].sum() for j in range(c)])
    outside = mass.sum()
    target = mass / outside
    gate = means @ q[t]
    loss = -weight * outside * (target * gate.log_softmax(-1)).sum()
    expected = torch.autograd.grad(loss, (q, k))
    dgate = weight * (outside * gate.detach().softmax(-1) - mass)
    dq, dk = torch.zeros_like(Q), torch.zeros_like(K)
    dq[t] = dgate @ means.detach()
    for j in range(c):
        dk[j * B:(j + 1) * B] = dgate[j] * Q[t] / B
    compare('sparse_attention.md', 'selection loss backward', [('q', dq, expected[0]), ('k', dk, expected[1])])


# ---------------------------------------------------------------- losses.md

def check_losses():
    R, V = 6, 50
    z, target, weight = rand(R, V), torch.randint(V, (R,)), torch.rand(R)
    loss = (F.cross_entropy(z, target, reduction='none') * weight).mean()
    Z = z.detach()
    dz = Z.softmax(-1)
    dz[torch.arange(R), target] -= 1
    dz *= weight[:, None] / R
    compare('losses.md', 'weighted cross entropy backward', [('z', dz, autograd(loss, None, z)[0])])
    drift = 0.5e-4 * (z.max(-1).values ** 2).mean()
    dz = torch.zeros_like(Z)
    top, at = Z.max(-1)
    dz[torch.arange(R), at] = 1e-4 / R * top
    compare('losses.md', 'L2Wrap', [('z', dz, autograd(drift, None, z)[0])])


if __name__ == '__main__':
    check_norms()
    check_wkv7()
    check_wkv7_float32()
    check_time_mix()
    check_channel_mix()
    check_sparse_attention()
    check_losses()
    for failure in failures:
        print('FAILED', failure)
    raise SystemExit(1 if failures else 0)
