"""Boards that need more than a link: a recording played back, a chip that another toolkit simulates."""
