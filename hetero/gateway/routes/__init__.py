"""The routes, by whose clients ask them. A request's way: requests -> generation -> client (the verifier) ->
answers."""
