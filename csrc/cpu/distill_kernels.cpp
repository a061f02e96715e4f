// distill
