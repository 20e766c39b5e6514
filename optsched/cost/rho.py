"""Apt-Serve's rho: what one block of hidden cache adds to a decode step, from physics."""

from __future__ import annotations

from optsched.domain.step_law import StepLaw


def rho_s_per_block(law: StepLaw, block_tokens: int) -> float:
    """Return the extra seconds per decode step and KV block held as hidden cache instead.

    Parameters
    ----------
    law
        Step law of the replica. Its `hidden_s` is the whole time of a hidden token, rebuild and attention. As KV cache the
        token would cost `kv_s`, so the price of hidden cache is the difference.
    block_tokens
        Tokens of a block.

    References
    ----------
    Apt-Serve, arXiv 2504.07494, Eq. 6: ``t_i = rho m_i``. The released code takes a fifth of the time of the whole QKV
    product in float32 instead.
    """
    return max(0.0, law.hidden_s - law.kv_s) * block_tokens
